"""Finished pieces of an evaluation on disk, so that one that was killed goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selfchat.core.errors import UsageError
from selfchat.core.files import read_json, write_json
from selfchat.core.records import Record, stable_id

RecordT = TypeVar("RecordT", bound=Record)


class Parts:
    """`NAME.json` in a folder for each part, with a fingerprint of what it was made from."""

    def __init__(self, folder: Path, made_from: object) -> None:
        self._folder = folder
        self._made_from = made_from

    def get(
        self, name: str, inputs: object, kind: type[RecordT], make: Callable[[], RecordT]
    ) -> RecordT:
        """The stored part where it was made from the same `inputs`; else make and store it."""
        path = self._folder / f"{name}.json"
        fingerprint = stable_id(self._made_from, name, inputs)
        stored = _read(path)
        if stored.get("fingerprint") == fingerprint:
            return kind.model_validate(stored["part"])
        part = make()
        write_json(path, {"fingerprint": fingerprint, "part": part.model_dump(mode="json")})
        return part


def _read(path: Path) -> dict[str, Any]:
    """An unreadable part counts as none: it is made again."""
    try:
        stored = read_json(path)
    except UsageError:
        return {}
    return stored if isinstance(stored, dict) and "part" in stored else {}
