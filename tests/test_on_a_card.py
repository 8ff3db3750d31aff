"""Tuning, and a whole run, on a card that is not there; see `pretend_card.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from selfchat.core.files import write_records
from tuning import dialogue

pytest.importorskip("triton")

SUPPORT = Path(__file__).parent / "support"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes torch believe in a card."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or torch.version.cuda:
        pytest.skip("there is no C++ compiler, or torch has a CUDA of its own")
    library = tmp_path_factory.mktemp("card") / "card.so"
    place = Path(torch.__file__).parent
    subprocess.run(
        [
            *(compiler, "-std=c++20", "-shared", "-fPIC", str(SUPPORT / "pretend_card.cpp")),
            *(f"-I{place / 'include'}", f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}"),
            *("-lc10", "-ltorch_cpu", "-o", str(library)),
        ],
        check=True,
    )
    return library


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short dialogues, and one that is held out: the interpreter is slow."""
    folder = tmp_path_factory.mktemp("corpus")
    write_records(folder / "train.jsonl", [dialogue(number, turns=1) for number in range(2)])
    write_records(folder / "heldout.jsonl", [dialogue(2, turns=1)])
    return folder


def selfchat_there(card: Path, *arguments: object, triton: bool = True) -> tuple[int, str]:
    """The command's exit code and what it says."""
    done = subprocess.run(
        [
            *(sys.executable, str(SUPPORT / "pretend_card.py"), str(card)),
            *([] if triton else ["--no-triton"]),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stderr


def tune_there(
    card: Path, base: Path, corpus: Path, out: Path, *options: str, triton: bool = True
) -> tuple[int, str]:
    """`selfchat tune`, one step a dialogue."""
    sizes = ("batch=1", "epochs=1", "max_length=256", "learning_rate=1e-2", *options)
    return selfchat_there(
        card,
        *("tune", "--corpus", corpus, "--base", f"hf:{base}", "--out", out),
        *(part for each in sizes for part in ("--set", f"tune.{each}")),
        triton=triton,
    )


def receipt(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "receipt.json").read_text())
    return found


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def refuse_differences(one: Path, other: Path) -> None:
    rows, others = log(one), log(other)
    assert len(rows) == len(others)
    for row, beside in zip(rows, others, strict=True):
        for figure, most in (("loss", 2e-3), ("heldout_loss", 2e-3), ("gradient_norm", 2e-2)):
            assert row.get(figure, 0.0) == pytest.approx(beside.get(figure, 0.0), rel=most)


@pytest.mark.parametrize(
    ("weights", "memory", "dropout"), [("int8", "large", 0.1), ("fp8", "small", 0.0)]
)
def test_a_run_with_triton_is_that_without(
    card: Path, tiny_base: Path, corpus: Path, tmp_path: Path, weights: str, memory: str,
    dropout: float,
) -> None:  # fmt: skip
    options = (f"weights={weights}", f"memory={memory}", f"dropout={dropout}")
    for name, triton in (("triton", True), ("torch", False)):
        out = tmp_path / name
        code, said = tune_there(card, tiny_base, corpus, out, *options, triton=triton)
        assert code == 0, said
        assert receipt(out)["device"] == "cuda"
        assert receipt(out)["weights"] == weights
        assert receipt(out)["memory"] == memory
    assert receipt(tmp_path / "triton")["kernels"] == "triton, torch's fp8 products"
    assert receipt(tmp_path / "torch")["kernels"] == "plain, torch's attention"
    refuse_differences(tmp_path / "triton", tmp_path / "torch")


@pytest.mark.parametrize(("asked", "taken"), [("auto", "bf16 int8 fp8"), ("nf4", "nf4")])
def test_other_numbers_are_tuned_there_too(
    card: Path, tiny_base: Path, corpus: Path, tmp_path: Path, asked: str, taken: str
) -> None:
    if asked == "nf4":
        pytest.importorskip("bitsandbytes")
    code, said = tune_there(card, tiny_base, corpus, tmp_path, f"weights={asked}", triton=False)
    assert code == 0, said
    assert receipt(tmp_path)["weights"] in taken.split()


def test_a_run_that_was_stopped_on_a_card_goes_on_to_the_same_bytes(
    card: Path, tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    code, said = tune_there(card, tiny_base, corpus, tmp_path / "whole", triton=False)
    assert code == 0, said
    stopped = (card, tiny_base, corpus, tmp_path / "stopped")
    code, said = tune_there(*stopped, "max_minutes=0.0001", triton=False)
    assert code == 130, said
    code, said = tune_there(*stopped, triton=False)
    assert code == 0, said
    assert "going on after step 1 of 2" in said
    whole, parts = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "stopped")
    )
    assert whole == parts


RECIPE = """
name = "tiny"
[seeds]
sources = ["{folder}/seeds.txt"]
[collect]
teacher = "scripted:{folder}/script.json"
strategy = "turns"
max_turns = 2
[curate]
heldout = 0.2
[tune]
base = "hf:{base}"
weights = "fp8"
max_length = 256
[evaluate]
greedy = 2
samples = 2
max_tokens = 8
"""


def test_a_whole_run_is_done_on_a_card(card: Path, tiny_base: Path, tmp_path: Path) -> None:
    lines = [
        {"as": "user", "say": "And the sand, after {seed}"},
        {"when": "sand", "say": "It is warm."},
        {"say": "The sea and the sky are blue."},
    ]
    (tmp_path / "script.json").write_text(json.dumps(lines))
    (tmp_path / "seeds.txt").write_text("".join(f"How are you, {each}?\n" for each in range(6)))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path, base=tiny_base))
    out = tmp_path / "run"
    code, said = selfchat_there(card, "run", tmp_path / "recipe.toml", "--out", out, triton=False)
    assert code == 0, said
    assert receipt(out / "adapter")["device"] == "cuda"
    assert (out / "report.html").exists()
