"""A whole collection from real seeds against the loopback endpoint, and how it went.

    python benchmarks/collect_corpus.py PATH:COLUMN ... [--seeds 50000] [--in-flight 64]
                                        [--latency 0.0] [--faults 0.03]

Prices are those of gpt-3.5-turbo, as if it had been paid. It prints the figures of `collect --json`
with the rate and the journal's growth over tenths of the run, the last line as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_PARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--seeds", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.03)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seeds = _gathered(options, Path(folder))
        print(json.dumps(_collected(options, seeds, run)))


def _gathered(options: argparse.Namespace, folder: Path) -> Path:
    """Seeds of all sources in one file, as many as are wanted."""
    lines: dict[str, None] = {}
    for number, source in enumerate(options.sources):
        path, _, column = source.rpartition(":")
        out = folder / f"{number}.jsonl"
        command = ["seeds", path, "--column", column, "--out", str(out), "--quiet"]
        subprocess.run([sys.executable, "-m", "selfchat", *command], check=True)
        lines |= dict.fromkeys(out.read_text("utf-8").splitlines())
    seeds = folder / "seeds.jsonl"
    seeds.write_text("\n".join(list(lines)[: options.seeds]) + "\n", "utf-8")
    return seeds


def _collected(options: argparse.Namespace, seeds: Path, run: Path) -> dict[str, Any]:
    script = [sys.executable, str(_HERE / "endpoint.py"), "--latency", str(options.latency)]
    script += ["--faults", str(options.faults), "--cpu", "1"]
    endpoint = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    try:
        assert endpoint.stdout is not None
        url = json.loads(endpoint.stdout.readline())["url"]
        command = ["taskset", "-c", "0", sys.executable, "-m", "selfchat", "collect"]
        command += ["--seeds", str(seeds), "--out", str(run), "--base-url", url, "--json"]
        command += ["--teacher", "openai:gpt-3.5-turbo", "--concurrency", str(options.in_flight)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        grown = _watched(child, run / "journal.sqlite", url)
        assert child.stdout is not None
        figures: dict[str, Any] = json.loads(child.stdout.read())
        ledger = _ledger(url)
    finally:
        endpoint.kill()
    calls = max(ledger["calls"], 1)
    return figures | {
        "calls_a_second": round(calls / figures["seconds"]),
        "repeats": ledger["repeats"],
        "journal_bytes_a_call": round((run / "journal.sqlite").stat().st_size / calls),
        "growth": _tenths(grown, calls),
    }


def _watched(child: subprocess.Popen[str], journal: Path, url: str) -> list[tuple[int, float, int]]:
    """Calls, seconds and bytes of the journal, now and then until the child ends."""
    began, seen = time.monotonic(), [(0, 0.0, 0)]
    while child.poll() is None:
        time.sleep(0.5)
        if journal.exists():
            size = journal.stat().st_size
            seen.append((_ledger(url)["calls"], time.monotonic() - began, size))
    return seen


def _tenths(seen: list[tuple[int, float, int]], calls: int) -> list[dict[str, int]]:
    """Calls a second and bytes a call in each tenth of the run."""
    marks = [next(row for row in seen if row[0] >= calls * n // _PARTS) for n in range(_PARTS + 1)]
    return [
        {
            "calls_a_second": round((after[0] - before[0]) / max(after[1] - before[1], 1e-9)),
            "bytes_a_call": round((after[2] - before[2]) / max(after[0] - before[0], 1)),
        }
        for before, after in pairwise(marks)
    ]


def _ledger(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/ledger") as answer:
        ledger: dict[str, Any] = json.load(answer)
    return ledger


if __name__ == "__main__":
    main()
