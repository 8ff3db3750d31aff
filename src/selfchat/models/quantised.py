"""A frozen linear layer with 8-bit weights: int8 with one scale for each output row.

The weights are dequantised for each product, in the forward pass and again for the gradient, so
only the 8-bit ones are kept (the paper, section 5: the base is held in int8 and stays fixed).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """`y = x Wᵀ + bias` with W (out, in) in int8; the product is in the dtype of x."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantise_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of (out, in) to 255 levels of its largest magnitude; scale is (out, 1)."""
    values = weight.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    return (values / scale).round().to(torch.int8), scale


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ _dequantise(weight, scale, x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ _dequantise(weight, scale, gradient.dtype), None, None


def _dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)


def quantise_linears(model: nn.Module) -> int:
    """Replace the linear layers of the decoder blocks by 8-bit ones; the head stays as it is.

    Returns:
        How many were replaced.
    """
    layers = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and ".layers." in f"{path}."
    ]
    for parent, name, child in layers:
        setattr(parent, name, Int8Linear(child))
    return len(layers)
