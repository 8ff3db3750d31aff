"""Reading what a run directory has for its report; whatever is not there is left empty."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from selfchat.core.errors import UsageError
from selfchat.core.files import read_json, read_records
from selfchat.core.records import ChatSettings, Dialogue, Reason, Rejection
from selfchat.core.rundir import Manifest, StepRecord
from selfchat.evaluate.scores import Answer, Scores

_EXAMPLES, _EXAMPLE_WORDS, _LOOKED_AT = 3, 160, 500


class Findings(NamedTuple):
    """All that a report tells; `rejections` counts by step and reason."""

    name: str
    steps: dict[str, StepRecord]
    seeds: int | None
    collected: int | None
    trained: int | None
    heldout: int | None
    rejections: Counter[tuple[str, Reason]]
    statistics: Sequence[dict[str, Any]]
    examples: Sequence[Dialogue]
    log: Sequence[dict[str, Any]]
    receipt: dict[str, Any]
    settings: ChatSettings | None
    scores: Scores | None
    answers: Sequence[Answer]


def read_findings(run: Path) -> Findings:
    """Raises UsageError when `run` is no directory, or a file in it is broken."""
    if not run.is_dir():
        raise UsageError(f"{run}: no such run directory")
    corpus, scores = run / "corpus", run / "scores"
    chat, scored = _json(run / "chat.json"), _json(scores / "scores.json")
    return Findings(
        name=run.resolve().name,
        steps=Manifest(run).steps,
        seeds=_lines(run / "seeds.jsonl"),
        collected=_lines(run / "dialogues.jsonl"),
        trained=_lines(corpus / "train.jsonl"),
        heldout=_lines(corpus / "heldout.jsonl"),
        rejections=_rejections([run / "rejections.jsonl", corpus / "rejections.jsonl"]),
        statistics=_json(corpus / "statistics.json") or [],
        examples=_examples(corpus / "train.jsonl"),
        log=_rows(run / "adapter" / "log.jsonl"),
        receipt=_json(run / "adapter" / "receipt.json") or {},
        settings=ChatSettings.model_validate(chat) if chat else None,
        scores=Scores.model_validate(scored) if scored else None,
        answers=_probe_answers(scores / "answers.jsonl"),
    )


def _json(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _lines(path: Path) -> int | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Raises UsageError at a row that is not JSON, but for a last one torn by a crash."""
    if not path.exists():
        return []
    rows, lines = [], path.read_text(encoding="utf-8").splitlines()
    for at, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if at < len(lines):
                raise UsageError(f"{path}:{at}: not JSON: {error.msg}") from None
    return rows


def _rejections(paths: Iterable[Path]) -> Counter[tuple[str, Reason]]:
    return Counter(
        (row.step, row.reason)
        for path in paths
        if path.exists()
        for row in read_records(path, Rejection)
    )


def _examples(path: Path) -> list[Dialogue]:
    """Three dialogues short enough to read, drawn from the first ones with a fixed seed."""
    if not path.exists():
        return []
    first = list(islice(read_records(path, Dialogue), _LOOKED_AT))
    short = [dialogue for dialogue in first if _words(dialogue) <= _EXAMPLE_WORDS]
    if len(short) < _EXAMPLES:
        return sorted(first, key=_words)[:_EXAMPLES]
    talks = [dialogue for dialogue in short if dialogue.turns > 1]
    return random.Random(0).sample(talks if len(talks) >= _EXAMPLES else short, _EXAMPLES)


def _words(dialogue: Dialogue) -> int:
    return sum(len(message.content.split()) for message in dialogue.messages)


def _probe_answers(path: Path) -> list[Answer]:
    if not path.exists():
        return []
    return [answer for answer in read_records(path, Answer) if answer.kind == "probe"]
