"""What each kernel of the tuner computes, in plain torch: for any device, and as a reference.

Rows are tokens: x is (tokens, width). `starts` are the first tokens of the sequences that lie one
behind another, and at last the number of all tokens: int64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh"]
Bits = Literal["int8", "fp8"]


class Scheme(NamedTuple):
    """How numbers are rounded to 8 bits along the depth of a product.

    `group` numbers of a row share a scale, and `weight_group` numbers of an output's weights; 0
    stands for all of them.
    """

    dtype: torch.dtype
    group: int
    weight_group: int

    @property
    def highest(self) -> float:
        """What the largest magnitude of a group becomes."""
        return 127.0 if self.dtype is torch.int8 else torch.finfo(self.dtype).max

    @property
    def turns(self) -> bool:
        """Whether a weight rounded once serves both products.

        An output's one scale multiplies its column of the slope; what is left to do with the weight
        for the gradient is to turn it.
        """
        return self.weight_group == 0


class Head(NamedTuple):
    """How attention weighs: scores are scaled; a token sees `window` keys, itself included."""

    scale: float
    window: int = 0  # 0: all tokens before it


class Dropout(NamedTuple):
    """What is dropped: `share` of the numbers, drawn from `keys` (tokens) int64.

    Equal keys draw equal rows, on any device and however the tokens are grouped.
    """

    keys: Tensor
    share: float

    @property
    def least(self) -> int:
        """A number is kept where its hash, of 32 bits, is not below this."""
        return int(self.share * (1 << 32))

    @property
    def factor(self) -> float:
        """By which those that are kept grow."""
        return 1 / (1 - self.share)


class Quantised(NamedTuple):
    """Rows in 8 bits: `values` (tokens, depth) and `scales` (tokens, groups along the depth)."""

    values: Tensor
    scales: Tensor


class Read(NamedTuple):
    """What was formed of rows x (tokens, depth) in one pass: they in 8 bits, and thin products."""

    quantised: Quantised | None
    low: Tensor | None  # x downᵀ, (tokens, narrow)
    sums: Tensor | None  # acrossᵀ x, (wide, depth)


class EightBitWeight(NamedTuple):
    """Frozen weights (outputs, depth) for products with quantised rows.

    In `Plain`, `values` is (outputs, depth) and `scales` (outputs, groups); other kernels lay them
    out as suits them. Without scales the rows carry them.
    """

    values: Tensor
    scales: Tensor | None
    corrections: Tensor | None
    outputs: int
    depth: int
    bits: Bits


ON_CARDS: Mapping[Bits, Scheme] = {
    "int8": Scheme(torch.int8, 64, 0),
    "fp8": Scheme(torch.float8_e4m3fn, 0, 0),
}


class Plain:
    """The kernels in torch operations."""

    name = "plain"
    schemes: Mapping[Bits, Scheme] = {**ON_CARDS, "int8": Scheme(torch.int8, 64, 64)}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`x weight / rms(x)` and 1 / rms (tokens); weight is fp32."""
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1) + eps)
        return (wide * inverse.unsqueeze(-1) * weight).to(x.dtype), inverse

    def rms_norm_backward(
        self, slope: Tensor, x: Tensor, weight: Tensor, inverse: Tensor
    ) -> Tensor:
        """The gradient on x."""
        wide, weighed, r = x.float(), slope.float() * weight, inverse.unsqueeze(-1)
        dot = (weighed * wide).mean(-1, keepdim=True)
        return (weighed * r - wide * (dot * r.pow(3))).to(x.dtype)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """`act(gate) up`."""
        return (_activate(gate.float(), activation) * up.float()).to(gate.dtype)

    def gated_backward(
        self, slope: Tensor, gate: Tensor, up: Tensor, activation: Activation
    ) -> tuple[Tensor, Tensor]:
        """The gradients on gate and up."""
        with torch.enable_grad():
            wide = gate.detach().float().requires_grad_()
            activated = _activate(wide, activation)
            (d_gate,) = torch.autograd.grad(activated, wide, slope.float() * up.float())
        return d_gate.to(gate.dtype), (slope.float() * activated.detach()).to(gate.dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, backward: bool = False) -> Tensor:
        """Rotary positions on x (tokens, heads, size), cos and sin fp32 (tokens, size).

        Su et al., 2021, in the half-split order of the LLaMA-type models.
        """
        wide, half = x.float(), x.shape[-1] // 2
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        if backward:
            turned = wide * sin
            return (wide * cos + torch.cat((turned[..., half:], -turned[..., :half]), -1)).to(
                x.dtype
            )
        turned = torch.cat((-wide[..., half:], wide[..., :half]), -1)
        return (wide * cos + turned * sin).to(x.dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        """Causal attention within each sequence.

        q is (tokens, heads, size), k and v (tokens, key heads, size).

        Returns:
            The result, shaped as q, and the log of each row's summed weights, (heads, tokens) fp32.
        """
        out = torch.empty_like(q)
        log_sums = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
        for here in _sequences(starts):
            scores = _scores(q[here].float(), k[here].float(), head)
            log_sums[:, here] = scores.logsumexp(-1)
            weights = (scores - log_sums[:, here].unsqueeze(-1)).exp()
            values = _by_head(v[here].float(), q.shape[1])
            out[here] = (weights @ values).transpose(0, 1).to(q.dtype)
        return out, log_sums

    def attention_backward(
        self, slope: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor,
        starts: Tensor, head: Head,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The gradients on q, k and v."""
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for here in _sequences(starts):
            with torch.enable_grad():
                leaves = [each[here].detach().float().requires_grad_() for each in (q, k, v)]
                weights = _scores(leaves[0], leaves[1], head).softmax(-1)
                result = (weights @ _by_head(leaves[2], q.shape[1])).transpose(0, 1)
                found = torch.autograd.grad(result, leaves, slope[here].float())
            for gradient, part in zip(gradients, found, strict=True):
                gradient[here] = part.to(q.dtype)
        return gradients

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, in nats; fp32 logits (rows, words) become its slope on them."""
        log_sum = logits.logsumexp(-1, keepdim=True)
        at = targets.unsqueeze(1)
        losses = (log_sum - logits.gather(1, at)).squeeze(1)
        logits.sub_(log_sum).exp_().scatter_add_(1, at, torch.full_like(at, -1, dtype=logits.dtype))
        return losses

    def read(
        self,
        x: Tensor,
        down: Tensor | None = None,
        across: Tensor | None = None,
        dropout: Dropout | None = None,
        bits: Bits | None = None,
        columns: Tensor | None = None,
    ) -> Read:
        """What is wanted of rows x (tokens, depth) among three things.

        Args:
            down: (narrow, depth), multiplied with each row.
            across: (tokens, wide), by which the rows are weighed and summed.
            dropout: what these two products do not see.
            bits: round the rows to 8 bits so.
            columns: (depth), what the rows are multiplied with before they are rounded.
        """
        seen = x if dropout is None else self.dropped(x, dropout)
        quantised = None
        if bits:
            wide = x.float() if columns is None else x.float() * columns
            scheme = self.schemes[bits]
            quantised = Quantised(*_quantise(wide, scheme, scheme.group))
        return Read(
            quantised,
            None if down is None else seen @ down.to(x.dtype).T,
            None if across is None else across.to(x.dtype).T @ seen,
        )

    def add_dropped(self, y: Tensor, low: tuple[Tensor, Tensor], dropout: Dropout) -> None:
        """Add what dropout leaves of `u b` to y (tokens, width); u (tokens, rank), b fp32."""
        u, b = (part.to(y.dtype) for part in low)
        y += self.dropped(u @ b, dropout)

    def dropped(self, x: Tensor, dropout: Dropout) -> Tensor:
        """What dropout leaves of x (tokens, width)."""
        columns = torch.arange(x.shape[1], dtype=torch.int64, device=x.device) * 0x9E3779B1
        mixed = (dropout.keys.unsqueeze(1) ^ columns) & _32_BITS
        for factor in (0x7FEB352D, 0x846CA68B):
            mixed = ((mixed ^ (mixed >> 16)) * factor) & _32_BITS
        mixed ^= mixed >> 15
        return x * (mixed >= dropout.least) * dropout.factor

    def eight_bit_weight(self, weight: Tensor, bits: Bits) -> EightBitWeight:
        """Round weights (outputs, depth) to 8 bits, once."""
        scheme = self.schemes[bits]
        values, scales = _quantise(weight.float(), scheme, scheme.weight_group)
        return EightBitWeight(values, scales, None, len(weight), weight.shape[1], bits)

    def turned(self, weight: EightBitWeight) -> EightBitWeight:
        """The same numbers (depth, outputs), without their scales, where the scheme allows it.

        The rows that they are multiplied with must have been read with `columns` of those scales.
        """
        values = weight.values[:, : weight.depth].T.contiguous()
        return EightBitWeight(values, None, None, weight.depth, weight.outputs, weight.bits)

    def eight_bit_product(
        self,
        rows: Quantised,
        weight: EightBitWeight,
        bias: Tensor | None = None,
        low: tuple[Tensor, Tensor] | None = None,
        into: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """`rows weightᵀ + bias + u b`, summed in fp32; low = u (tokens, rank), b (rank, outputs).

        Args:
            into: what the result is added to, in place.
            dtype: of the result, where `into` is not given.
        """
        scheme = self.schemes[weight.bits]
        y = torch.zeros(len(rows.values), weight.outputs, device=rows.values.device)
        step = scheme.group or weight.depth
        for group, start in enumerate(range(0, weight.depth, step)):
            here = slice(start, min(start + step, weight.depth))
            sums = _eight_bit_sums(rows.values[:, here], weight.values[:, here])
            if weight.scales is not None:
                sums *= weight.scales[:, group if scheme.weight_group else 0]
            y += sums * rows.scales[:, group, None]
        if bias is not None:
            y += bias
        if low is not None:
            y.addmm_(low[0].float(), low[1].float())
        return y.to(dtype) if into is None else into.add_(y)


_32_BITS = (1 << 32) - 1


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh")


def _sequences(starts: Tensor) -> list[slice]:
    return [slice(first, last) for first, last in pairwise(starts.tolist())]


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(tokens, key heads, size) as (heads, tokens, size), each key head repeated for its group."""
    return x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0)


def _scores(q: Tensor, k: Tensor, head: Head) -> Tensor:
    scores = q.transpose(0, 1) @ _by_head(k, q.shape[1]).transpose(1, 2) * head.scale
    at = torch.arange(len(q), device=q.device)
    back = at.unsqueeze(1) - at
    hidden = (back < 0) | (back >= head.window) if head.window else back < 0
    return scores.masked_fill(hidden, float("-inf"))


def _quantise(x: Tensor, scheme: Scheme, group: int) -> tuple[Tensor, Tensor]:
    """x (rows, depth) fp32 in 8 bits, and the scales (rows, groups)."""
    values, scales = torch.empty_like(x, dtype=scheme.dtype), []
    step = group or x.shape[1]
    for start in range(0, x.shape[1], step):
        part = x[:, start : start + step]
        most = part.abs().amax(1, keepdim=True)
        inverse = torch.where(most > 0, scheme.highest / most, torch.zeros_like(most))
        scaled = (part * inverse).clamp(-scheme.highest, scheme.highest)
        values[:, start : start + step] = (
            scaled.round() if scheme.dtype is torch.int8 else scaled
        ).to(scheme.dtype)
        scales.append(most / scheme.highest)
    return values, torch.cat(scales, 1)


def _eight_bit_sums(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows weightᵀ` in fp32, exact for int8."""
    if rows.dtype is torch.int8 and rows.device.type == "cpu":
        return torch._int_mm(rows.contiguous(), weight.T.contiguous()).float()
    return rows.float() @ weight.float().T
