"""The paper's probe questions (its tables 4 to 9), word for word."""

from __future__ import annotations

from importlib import resources

from selfchat.core.files import read_records
from selfchat.core.records import Record

_FILE = "probes.jsonl"


class Probe(Record):
    """One dialogue of the paper: the human's messages, each asked after the model's own reply.

    The two requests of table 7 stand under one caption but have nothing to do with each other:
    they are two probes. The doctor's dialogue of table 9 was put to the healthcare model only;
    here every model answers it.
    """

    id: str
    table: int
    title: str
    questions: tuple[str, ...]


def probes() -> list[Probe]:
    with resources.as_file(resources.files(__package__) / _FILE) as path:
        return list(read_records(path, Probe))
