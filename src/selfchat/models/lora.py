"""Low-rank adapters on frozen linear layers (Hu et al., 2022; the paper, section 4, equation 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfchat.core.errors import UsageError
from selfchat.models.quantised import Int8Linear

Targets = Literal["baize", "all-linear"]

TARGET_MODULES: dict[Targets, tuple[str, ...]] = {
    "baize": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


class LoraConfig(NamedTuple):
    """The shape of the adapters; their output is scaled by alpha / rank."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGET_MODULES["all-linear"]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """`h = W0 x + (alpha / rank) B A x`; at first A (rank, in) is Gaussian and B (out, rank) zero.

    The adapter's weights are fp32 masters; its products are in the dtype of x.
    """

    def __init__(
        self, base: nn.Linear | Int8Linear, config: LoraConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.scale = config.scale
        self.dropout = config.dropout
        self.enabled = True
        first = torch.randn(config.rank, base.in_features, generator=generator) / config.rank
        device = base.weight.device
        self.lora_a = nn.Parameter(first.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = functional.linear(dropped, self.lora_a.to(x.dtype))
        return y + functional.linear(inner, (self.lora_b * self.scale).to(x.dtype))


def add_lora(model: nn.Module, config: LoraConfig, rng_seed: int) -> None:
    """Freeze the model and put adapters on its target layers.

    Raises:
        UsageError: the model has none of the target layers.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(rng_seed)
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in config.targets and isinstance(child, nn.Linear | Int8Linear)
    ]
    found = {name for _, name, _ in layers}
    if missing := sorted(set(config.targets) - found):
        raise UsageError(
            f"{type(model).__name__} has no layers named {', '.join(missing)}: "
            "LoRA needs a LLaMA-type model"
        )
    for parent, name, child in layers:
        setattr(parent, name, LoraLinear(child, config, generator))


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by their path in the model."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it the model answers as the base does."""
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def merge_lora(model: nn.Module) -> None:
    """Fold the adapters into unquantised base weights: W ← W0 + (alpha / rank) B A, in fp32."""
    for path, layer in lora_layers(model).items():
        if not isinstance(layer.base, nn.Linear):
            raise UsageError("merging needs unquantised base weights")
        delta = layer.scale * (layer.lora_b.double() @ layer.lora_a.double())
        weight = layer.base.weight
        weight.data = (weight.double() + delta).to(weight.dtype)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.base)


def lora_parameter_count(shapes: dict[str, tuple[int, int]], rank: int) -> int:
    """Trainable parameters of adapters on layers of shape (out, in): rank (out + in) each."""
    return sum(rank * (rows + columns) for rows, columns in shapes.values())
