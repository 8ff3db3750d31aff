"""What the parser makes of whole transcripts of the embedded model.

`python benchmarks/transcripts.py RUN` reads the journal of a run with `strategy = "transcript"` and
prints the outcomes by reason, two answers as they came, and one JSON line last.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path

from selfchat.template.transcript import Unreadable, parse_transcript


def main(run: Path) -> None:
    with sqlite3.connect(run / "journal.sqlite") as connection:
        rows = connection.execute("SELECT raw FROM calls WHERE raw IS NOT NULL").fetchall()
    answers = [json.loads(raw) for (raw,) in rows]
    outcomes = Counter(outcome(answer["content"], answer["stop_type"]) for answer in answers)
    for answer in answers[:2]:
        print(f"--- as it came:\n{answer['content'][:600]}\n")
    print(json.dumps({"answers": len(answers), "outcomes": dict(outcomes.most_common())}))


def outcome(text: str, stop_type: str) -> str:
    try:
        messages = parse_transcript(text, cut=stop_type == "limit")
    except Unreadable as fault:
        return f"{fault.reason}: {fault.detail.split(':')[0]}"
    return f"read, {len(messages) // 2} turns"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
