"""Tuning: exact steps whatever the micro-batches, exact resume, and the losses of a plain loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from selfchat.core.errors import SelfchatError, UsageError
from selfchat.core.files import write_records
from selfchat.core.progress import Quiet
from selfchat.core.records import Dialogue, Message
from selfchat.kernels.plain import Plain
from selfchat.models.bases import load_base, load_tokenizer
from selfchat.models.lora import LoraConfig, add_lora
from selfchat.models.packing import micro_batches, pack
from selfchat.template.renderer import Example, make_renderer
from selfchat.tune.checkpoint import FILES
from selfchat.tune.examples import make_examples, refuse_unlearnable
from selfchat.tune.model import tuned_model
from selfchat.tune.options import TuneOptions
from selfchat.tune.step import tune

CPU = torch.device("cpu")


def dialogue(number: int, turns: int = 2) -> Dialogue:
    said = []
    for turn in range(turns):
        said.append(Message(role="user", content=f"What is {number} plus {turn}?"))
        said.append(
            Message(role="assistant", content=f"It is {number + turn}. " * (1 + number % 3))
        )
    return Dialogue.make(f"seed-{number}", said, "test")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_records(folder / "train.jsonl", [dialogue(number) for number in range(12)])
    write_records(folder / "heldout.jsonl", [dialogue(number) for number in range(12, 15)])
    return folder


def options(base: Path, **changes: object) -> TuneOptions:
    values = {
        "base": f"hf:{base}", "weights": "fp32", "batch": 4, "epochs": 2, "learning_rate": 1e-2,
        "max_length": 256, **changes,
    }  # fmt: skip
    return TuneOptions.model_validate(values)


def examples_of(base: Path, count: int = 6) -> list[Example]:
    renderer = make_renderer(load_tokenizer(f"hf:{base}"), "baize")
    dialogues = [dialogue(number, 1 + number % 3) for number in range(count)]
    return make_examples(dialogues, renderer, "assistant", 256).kept


def test_the_loss_is_that_of_full_logits(tiny_base: Path) -> None:
    tuned = tuned_model(f"hf:{tiny_base}", "fp32", CPU, LoraConfig(rank=2), 1, Plain())
    examples = examples_of(tiny_base)
    rows = pack(examples, CPU)
    total, count = tuned.summed_loss(rows), len(rows.targets)
    (total / count).backward()
    gradients = [p.grad.clone() for p in tuned.model.parameters() if p.requires_grad]

    model = load_base(f"hf:{tiny_base}", "fp32", CPU)
    add_lora(model, LoraConfig(rank=2), rng_seed=1)
    plain = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.token_ids])
        targets = ids.clone()
        targets[torch.tensor([example.loss_mask]) == 0] = -100
        logits = model(input_ids=ids).logits
        plain = plain + functional.cross_entropy(
            logits[0, :-1], targets[0, 1:], ignore_index=-100, reduction="sum"
        )
    (plain / count).backward()

    assert count == sum(sum(example.loss_mask[1:]) for example in examples)
    assert torch.allclose(total.float(), plain, atol=1e-4)
    expected = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("budget", [16, 120, 100_000])
def test_micro_batches_hold_every_example_once_and_keep_to_the_budget(
    tiny_base: Path, budget: int
) -> None:
    lengths = [len(example.token_ids) for example in examples_of(tiny_base, 9)]
    groups = micro_batches(lengths, budget)
    assert sorted(place for group in groups for place in group) == list(range(9))
    for group in groups:
        assert len(group) == 1 or sum(lengths[place] for place in group) <= budget


def test_the_cut_into_micro_batches_does_not_change_the_adapter(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    for budget in (64, 4096):
        tune(options(tiny_base, micro_tokens=budget), corpus, tmp_path / str(budget), Quiet())
    one, other = (load_file(tmp_path / b / "adapter_model.safetensors") for b in ("64", "4096"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_equal_runs_give_equal_bytes(tiny_base: Path, corpus: Path, tmp_path: Path) -> None:
    chosen = options(tiny_base, dropout=0.1)
    for name in ("a", "b"):
        tune(chosen, corpus, tmp_path / name, Quiet())
    one, other = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("a", "b"))
    assert one == other


def test_a_run_killed_in_the_middle_goes_on_to_equal_bytes(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    chosen = options(tiny_base, dropout=0.1, epochs=40, checkpoint_seconds=1e-6)
    tune(chosen, corpus, tmp_path / "whole", Quiet())
    program = (
        "import sys; from pathlib import Path; from selfchat.core.progress import Quiet;"
        "from selfchat.tune.options import TuneOptions; from selfchat.tune.step import tune;"
        "tune(TuneOptions.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]),"
        " Quiet())"
    )
    out = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", program, chosen.model_dump_json(), str(corpus), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while not (out / FILES[0]).exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "adapter_model.safetensors").exists()

    receipt = tune(chosen, corpus, out, Quiet())

    whole, resumed = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert resumed == whole
    assert receipt.steps == 120
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 121))


def test_a_checkpoint_of_another_recipe_is_not_taken_up(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    tune(options(tiny_base), corpus, tmp_path / "fresh", Quiet())
    out.mkdir()
    (out / FILES[0]).write_bytes(b"torn")
    tune(options(tiny_base), corpus, out, Quiet())
    one, other = (
        (folder / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "fresh")
    )
    assert one == other


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(SelfchatError, match="learning_rate"):
        tune(options(tiny_base, learning_rate=1e30, epochs=5), corpus, tmp_path / "out", Quiet())


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("chat_format", ["baize", "native"])
def test_tuning_lowers_the_held_out_loss(
    tiny_base: Path, corpus: Path, tmp_path: Path, weights: str, chat_format: str
) -> None:
    chosen = options(tiny_base, weights=weights, format=chat_format, epochs=4)
    receipt = tune(chosen, corpus, tmp_path / "out", Quiet())
    assert receipt.heldout_loss_after < receipt.heldout_loss_before
    assert receipt.weights == weights
    assert receipt.steps == 12


def test_a_base_that_is_not_there_is_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load the base model"):
        tune(options(tmp_path / "nothing"), corpus, tmp_path / "out", Quiet())


def test_a_corpus_whose_replies_never_end_is_refused(tiny_base: Path) -> None:
    renderer = make_renderer(load_tokenizer(f"hf:{tiny_base}"), "baize")
    example = renderer.example(dialogue(1))
    last = max(at for at, trained in enumerate(example.loss_mask) if trained)
    endless = Example(example.token_ids[: last - 8], example.loss_mask[: last - 8], 1)
    with pytest.raises(UsageError, match="never stop"):
        refuse_unlearnable([endless], renderer)


def test_a_corpus_without_a_trained_token_is_refused(tiny_base: Path) -> None:
    renderer = make_renderer(load_tokenizer(f"hf:{tiny_base}"), "baize")
    example = renderer.example(dialogue(1))
    with pytest.raises(UsageError, match="no trained token"):
        refuse_unlearnable([example._replace(loss_mask=[0] * len(example.token_ids))], renderer)


def test_a_length_that_nothing_fits_is_refused(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="max_length"):
        tune(options(tiny_base, max_length=16), corpus, tmp_path / "out", Quiet())
