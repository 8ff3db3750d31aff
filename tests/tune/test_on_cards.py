"""The whole tuner on the programs for graphics cards, which run in Triton's interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interpreter import interpreted
from selfchat.core.progress import Quiet
from selfchat.kernels.flash import Flash
from selfchat.tune import step
from selfchat.tune.step import tune
from tuning import make_corpus, options_for


@pytest.mark.parametrize(("weights", "dropout"), [("int8", 0.1), ("fp8", 0.0)])
def test_a_run_on_the_cards_programs_is_that_of_the_plain_kernels(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, dropout: float
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    (corpus / "heldout.jsonl").write_text((corpus / "train.jsonl").read_text().splitlines()[0])
    options = options_for(tiny_base, weights=weights, dropout=dropout, batch=1, epochs=1)
    logs = []
    for name, kernels in (("plain", Flash()), ("cards", interpreted())):
        monkeypatch.setattr(step, "best_kernels", lambda *which, kernels=kernels: (kernels, ""))
        assert tune(options, corpus, tmp_path / name, Quiet()).kernels == kernels.name
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for one, other in zip(*logs, strict=True):
        for figure, most in (("loss", 2e-3), ("heldout_loss", 2e-3), ("gradient_norm", 2e-2)):
            assert one.get(figure, 0.0) == pytest.approx(other.get(figure, 0.0), rel=most)
