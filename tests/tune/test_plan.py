from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfchat.core.errors import UsageError
from selfchat.tune.options import TuneOptions
from selfchat.tune.plan import CARDS, adapter_parameters, find_shape, plan


def planned(base: str, **values: Any) -> Any:
    return plan(TuneOptions(base=base, **values))


@pytest.mark.parametrize(
    ("base", "trainable", "printed"),
    [
        ("hf:huggyllama/llama-7b", 17_891_328, "17.9M"),
        ("hf:huggyllama/llama-13b", 28_016_640, "28.0M"),
        ("hf:huggyllama/llama-30b", 54_558_720, "54.6M"),
    ],
)
def test_trainable_parameters_are_those_of_the_papers_table_3(
    base: str, trainable: int, printed: str
) -> None:
    found = planned(base, targets="baize", rank=8).trainable_parameters
    assert found == trainable
    assert f"{found / 1e6:.1f}M" == printed


@pytest.mark.parametrize(
    ("base", "parameters"),
    [("embedded:smollm2-135m", 134_515_008), ("hf:huggyllama/llama-7b", 6_738_415_616)],
)
def test_parameters_of_a_base_are_exact(base: str, parameters: int) -> None:
    assert planned(base).base_parameters == parameters


def test_a_token_costs_27_gflop_with_7b() -> None:
    options = {"targets": "baize", "max_length": 512}
    assert round(planned("hf:huggyllama/llama-7b", **options).flops_per_token / 1e9, 1) == 27.0


def test_all_linear_adds_the_output_projection() -> None:
    shape = find_shape("hf:huggyllama/llama-7b")
    both = [
        adapter_parameters(shape, TuneOptions(targets=targets))
        for targets in ("baize", "all-linear")
    ]
    assert both[1] - both[0] == 32 * 8 * (4096 + 4096)


def test_rank_scales_the_adapters() -> None:
    one, two = (planned("embedded:smollm2-135m", rank=rank) for rank in (8, 16))
    assert two.trainable_parameters == 2 * one.trainable_parameters


def test_narrower_weights_need_less_memory() -> None:
    wide, half, narrow = (
        planned("hf:huggyllama/llama-7b", weights=weights).memory_bytes
        for weights in ("fp32", "bf16", "nf4")
    )
    assert wide > half > narrow > 3.4e9


def test_int8_has_a_copy_for_each_of_the_two_products() -> None:
    half, eight = (
        planned("hf:huggyllama/llama-7b", weights=weights).memory_bytes
        for weights in ("bf16", "int8")
    )
    assert eight == half


@pytest.mark.parametrize(
    ("base", "tokens"),
    [("hf:huggyllama/llama-7b", 8192), ("hf:huggyllama/llama-13b", 4096),
     ("hf:huggyllama/llama-30b", 1024)],
)  # fmt: skip
def test_the_presets_fit_into_80_gb(base: str, tokens: int) -> None:
    options = {"targets": "baize", "weights": "int8", "micro_tokens": tokens}
    assert planned(base, **options).memory_bytes < 80e9


def test_the_rate_is_the_cards_share_of_its_peak() -> None:
    made = planned("hf:huggyllama/llama-7b", gpu="H100")
    card = CARDS["H100"]
    assert made.tokens_per_second == pytest.approx(card.flops * card.share / made.flops_per_token)
    unknown = planned("hf:huggyllama/llama-7b", gpu="Abacus")
    assert unknown.tokens_per_second is None
    assert "rate          unknown assumed on one Abacus" in unknown.text()


def test_the_plan_of_a_folder_counts_what_its_model_has(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    from selfchat.models.lora import LoraConfig, add_lora

    made = planned(f"hf:{tiny_base}")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert made.base_parameters == sum(weight.numel() for weight in model.parameters())
    add_lora(model, LoraConfig(), rng_seed=0)
    trainable = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    assert made.trainable_parameters == sum(trainable)


def test_an_unknown_base_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="shape of hf:a/b is not known here; known are hf:"):
        planned("hf:a/b")


@pytest.mark.parametrize("content", ["{", json.dumps({"hidden_size": 1})])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="not a LLaMA-type configuration"):
        planned(f"hf:{tmp_path}")
