"""What the tests of tuning share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning import make_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus")
