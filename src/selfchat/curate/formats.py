"""Rows of foreign corpora become dialogues at the door."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from selfchat.core.errors import UsageError
from selfchat.core.hub import HubAddress, parquet_paths
from selfchat.core.progress import Progress
from selfchat.core.records import Dialogue, Message, Reason, Rejection, Role, stable_id
from selfchat.core.rows import Row, read_rows
from selfchat.template.markers import HUMAN
from selfchat.template.transcript import Unreadable, parse_transcript

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}


_DATA = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".tsv")


class Format(NamedTuple):
    """How one kind of row is recognised, by its keys, and read."""

    name: str
    keys: frozenset[str]
    messages: Callable[[dict[str, Any]], list[Message]]
    topic: str  # the column that says what the dialogue is about; "" for its first message


def source_paths(address: str, progress: Progress) -> list[Path]:
    """The files that a source names: itself, or the Parquet files of `hf:NAME[:CONFIG]`.

    Raises:
        UsageError, SelfchatError: the data set is not there or cannot be fetched.
    """
    if address.startswith("hf:"):
        return parquet_paths(HubAddress.parse(address), progress)
    return [Path(address)]


def read_dialogues(path: Path, source: str = "") -> Iterator[Dialogue | Rejection]:
    """Read a file of dialogues in any known format; a row that is none becomes a rejection.

    Raises:
        UsageError: the file cannot be read, or its rows are of no known format.
    """
    name = source or path.stem
    for row in read_rows(path):
        if "seed_id" in row.columns and "messages" in row.columns:
            yield _own(row, source)
            continue
        kind = _recognise(row)
        try:
            messages = kind.messages(row.columns)
            asked = [message.content for message in messages if message.role == "user"]
            seed_id = stable_id(str(row.columns.get(kind.topic) or asked[0]))
            yield Dialogue.make(seed_id, messages, name)
        except Unreadable as fault:
            yield _rejection(row, name, fault.reason, fault.detail)
        except (ValueError, LookupError, TypeError, AttributeError) as fault:
            yield _rejection(row, name, Reason.UNPARSABLE, _first_line(fault))


class Files:
    """Files of dialogues that are read once; rows that are none are counted by reason."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._rejected: Counter[str] = Counter()

    def dialogues(self) -> Iterator[Dialogue]:
        for path in self._paths:
            for entry in read_dialogues(path):
                if isinstance(entry, Dialogue):
                    yield entry
                else:
                    self._rejected[f"{entry.source}: {entry.reason}"] += 1

    def complaints(self) -> list[str]:
        """A line for each kind of row that was no dialogue; after `dialogues` has ended."""
        return [f"{what}: {count} rows left out" for what, count in self._rejected.items()]


def read_files(paths: Sequence[Path]) -> Files:
    """Files, the train and held-out parts of corpus folders, and the data files of other folders.

    Raises:
        UsageError: a folder holds no file of dialogues.
    """
    return Files([file for path in paths for file in (_members(path) if path.is_dir() else [path])])


def _members(folder: Path) -> list[Path]:
    corpus = [folder / "train.jsonl", folder / "heldout.jsonl"]
    data = sorted(path for path in folder.iterdir() if path.suffix.lower() in _DATA)
    found = [path for path in (corpus if corpus[0].exists() else data) if path.exists()]
    if not found:
        raise UsageError(f"{folder}: no file of dialogues in it ({', '.join(_DATA)})")
    return found


def _own(row: Row, source: str) -> Dialogue:
    try:
        dialogue = Dialogue.model_validate(row.columns)
    except ValidationError as fault:
        raise UsageError(f"{row.where}: {_first_line(fault)}") from None
    return dialogue.model_copy(update={"source": source}) if source else dialogue


def _recognise(row: Row) -> Format:
    for kind in _FORMATS:
        if kind.keys <= row.columns.keys():
            return kind
    known = "; ".join(f"{kind.name} ({', '.join(sorted(kind.keys))})" for kind in _FORMATS)
    keys = reprlib.repr(list(row.columns))
    raise UsageError(f"{row.where}: no dialogue: it has the keys {keys}; known are {known}")


def _rejection(row: Row, source: str, reason: Reason, detail: str) -> Rejection:
    identity = stable_id(source, row.where)
    return Rejection(
        id=identity, seed_id="", source=source, step="curate", reason=reason,
        detail=f"{row.where.rpartition('/')[2]}: {detail}",
    )  # fmt: skip


def _first_line(fault: Exception) -> str:
    if isinstance(fault, ValidationError):
        return str(fault.errors()[0]["msg"])
    return f"{type(fault).__name__}: {fault}".splitlines()[0]


def _from_messages(columns: dict[str, Any]) -> list[Message]:
    return [
        Message(role=_ROLES[str(member["role"]).lower()], content=member["content"])
        for member in columns["messages"]
    ]


def _from_sharegpt(columns: dict[str, Any]) -> list[Message]:
    said = [
        Message(role=_ROLES[str(member["from"]).lower()], content=member["value"])
        for member in columns["conversations"]
    ]
    if isinstance(chosen := columns.get("chosen"), dict):  # the better answer of a preference pair
        return [*said, Message(role=_ROLES[str(chosen["from"]).lower()], content=chosen["value"])]
    return said[: len(said) - 1] if said and said[-1].role == "user" else said


def _from_baize(columns: dict[str, Any]) -> list[Message]:
    text = str(columns["input"])
    return list(parse_transcript(text[max(text.find(HUMAN), 0) :]))  # without the preamble


def _from_alpaca(columns: dict[str, Any]) -> list[Message]:
    extra = str(columns.get("input") or "").strip()
    asked = f"{columns['instruction']}\n{extra}" if extra else str(columns["instruction"])
    return [
        Message(role="user", content=asked.strip()),
        Message(role="assistant", content=str(columns["output"]).strip()),
    ]


def _from_prompt(columns: dict[str, Any]) -> list[Message]:
    return [
        Message(role="user", content=str(columns["prompt"]).strip()),
        Message(role="assistant", content=str(columns["response"]).strip()),
    ]


_FORMATS = (
    Format("messages", frozenset({"messages"}), _from_messages, ""),
    Format("ShareGPT", frozenset({"conversations"}), _from_sharegpt, ""),
    Format("Baize", frozenset({"topic", "input"}), _from_baize, "topic"),
    Format("Alpaca", frozenset({"instruction", "output"}), _from_alpaca, ""),
    Format("prompt and response", frozenset({"prompt", "response"}), _from_prompt, ""),
)
