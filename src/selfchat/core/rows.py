"""Reading rows from text, CSV, TSV, JSON, JSON Lines and Parquet files, with the place of each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from selfchat.core.errors import UsageError, missing_extra

SUFFIXES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")


class Row(NamedTuple):
    """One row: where it stands, as file:line, and its columns. Plain text has the column `text`."""

    where: str
    columns: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of one file by its suffix.

    Raises:
        UsageError: the file is not there, of an unknown kind, not UTF-8, or has a bad row.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: cannot read {path.suffix or 'this'}; use one of {_known()}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it, "
            f"for example: iconv -f latin1 -t utf-8"
        ) from None


def _known() -> str:
    return ", ".join(SUFFIXES)


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Row(f"{path}:{number}", {"text": line.rstrip("\n")})


def _delimited(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for columns in reader:
                where = f"{path}:{reader.line_num}"
                if None in columns:
                    raise UsageError(f"{where}: more fields than the {len(columns) - 1} columns")
                yield Row(where, {str(name): value for name, value in columns.items()})
        except csv.Error as error:
            raise UsageError(f"{path}:{reader.line_num}: {error}") from None


def _json(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if isinstance(value, dict):
        lists = [name for name, member in value.items() if isinstance(member, list)]
        value = value[lists[0]] if len(lists) == 1 and len(value) == 1 else [value]
    if not isinstance(value, list):
        raise UsageError(f"{path}: holds a {type(value).__name__}; a list of rows is needed")
    for number, member in enumerate(value, start=1):
        yield Row(f"{path}: row {number}", _columns(member))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield Row(f"{path}:{number}", _columns(json.loads(line)))
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}:{number}: not JSON: {error.msg}") from None


def _columns(member: Any) -> dict[str, Any]:
    return member if isinstance(member, dict) else {"text": member}


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("data", "pyarrow") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", columns)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not Parquet: {error}") from None


_READERS = {
    ".txt": _text,
    ".md": _text,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
