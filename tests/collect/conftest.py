"""An endpoint on loopback, and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from endpoint import Endpoint
from selfchat.core.files import write_records
from selfchat.core.records import Seed


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as served:
        yield served


@pytest.fixture
def write_seeds(tmp_path: Path) -> Callable[..., Path]:
    def write(*texts: str) -> Path:
        path = tmp_path / "seeds.jsonl"
        write_records(path, (Seed.make(text, "test") for text in texts))
        return path

    return write
