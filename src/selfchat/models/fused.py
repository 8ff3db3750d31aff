"""Parts of a decoder that are computed by our kernels, in place of equal ones of transformers.

A part is replaced only where it was seen to compute the same: each kind is tried on random numbers
beside the original first. What is not replaced still works; attention is ours for every model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from selfchat.core.errors import UsageError
from selfchat.kernels.plain import Activation, Head, Plain
from selfchat.models.packing import Packing, current_packing, packed

_NAME = "selfchat"  # of our attention, among those of transformers


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kernels: Plain) -> Tensor:
        y, inverse = kernels.rms_norm(x, weight, eps)
        ctx.kernels = kernels
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.kernels.rms_norm_backward(slope, *ctx.saved_tensors), None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, activation: Activation, kernels: Plain
    ) -> Tensor:
        ctx.activation, ctx.kernels = activation, kernels
        ctx.save_for_backward(gate, up)
        return kernels.gated(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *ctx.kernels.gated_backward(slope, *ctx.saved_tensors, ctx.activation), None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, kernels: Plain) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(cos, sin)
        return kernels.rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.kernels.rotate(slope, *ctx.saved_tensors, backward=True), None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, head: Head, kernels: Plain
    ) -> Tensor:
        out, log_sums = kernels.attention(q, k, v, starts, head)
        ctx.starts, ctx.head, ctx.kernels = starts, head, kernels
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.kernels.attention_backward(slope, *ctx.saved_tensors, ctx.starts, ctx.head)
        return *gradients, None, None, None


def _attend(q: Tensor, k: Tensor, v: Tensor, head: Head, kernels: Plain) -> Tensor:
    packing = current_packing()
    starts = packing.starts if packing else torch.tensor([0, len(q)])
    y: Tensor = _Attention.apply(q, k, v, starts, head, kernels)  # type: ignore[no-untyped-call]
    return y


class FusedNorm(nn.Module):
    """An RMS norm (Zhang and Sennrich, 2019) with frozen weights."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float, kernels: Plain) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().float().contiguous(), persistent=False)
        self._eps, self._kernels = eps, kernels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Norm.apply(x, self.weight, self._eps, self._kernels)  # type: ignore[no-untyped-call]
        return y


class FusedMlp(nn.Module):
    """`down(act(gate(x)) up(x))` (Shazeer, 2020)."""

    def __init__(self, mlp: Any, activation: Activation, kernels: Plain) -> None:
        super().__init__()
        self.gate_proj: nn.Module = mlp.gate_proj
        self.up_proj: nn.Module = mlp.up_proj
        self.down_proj: nn.Module = mlp.down_proj
        self._activation, self._kernels = activation, kernels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(
            _Gate.apply(self.gate_proj(x), self.up_proj(x), self._activation, self._kernels)  # type: ignore[no-untyped-call]
        )
        return y


class FusedAttention(nn.Module):
    """Projections, norms of queries and keys where there are some, rotation, attention."""

    def __init__(self, attention: Any, kernels: Plain) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.q_norm, self.k_norm = _norms(attention)
        self._size: int = attention.head_dim
        self._head = Head(attention.scaling, getattr(attention, "sliding_window", None) or 0)
        self._kernels = kernels

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **others: Any
    ) -> tuple[Tensor, None]:
        tokens = hidden_states.shape[1]
        shape = (tokens, -1, self._size)
        q, k, v = (
            project(hidden_states).view(shape)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (
            each if norm is None else norm(each)
            for each, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        cos, sin = (part[0].float().contiguous() for part in position_embeddings)
        q, k = (_Rotation.apply(each, cos, sin, self._kernels) for each in (q, k))  # type: ignore[no-untyped-call]
        out = _attend(q, k, v, self._head, self._kernels)
        return self.o_proj(out.view(1, tokens, -1)), None


def _norms(attention: Any) -> tuple[nn.Module | None, nn.Module | None]:
    return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


def fuse(model: Any, kernels: Plain) -> dict[str, int]:
    """Put our parts into a model, where they compute the same; it then reads packed rows only.

    Returns:
        How many parts of each kind were replaced.

    Raises:
        UsageError: packing gives other results than reading the sequences one by one.
    """
    expected = _probe(model, one_by_one=True)
    _register(kernels)
    model.config._attn_implementation = _NAME
    config = model.base_model.config
    config._attn_implementation = _NAME
    counts = {
        "norm": _replace(model, lambda part: _fused_norm(part, kernels)),
        "mlp": _replace(model, lambda part: _fused_mlp(part, kernels)),
        "attention": _replace(model, lambda part: _fused_attention(part, model, kernels)),
    }
    found = _probe(model, one_by_one=False)
    if not _alike(found, expected):
        raise UsageError(
            f"{type(model).__name__} gives other results when dialogues are packed: it is not "
            "supported; use a LLaMA-type model"
        )
    return counts


def _register(kernels: Plain) -> None:
    """Make our attention one of those that the models of transformers may use."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if (
            softcap is not None
            or query.shape[-1] != value.shape[-1]
            or others.get("s_aux") is not None
        ):
            raise UsageError(f"{type(module).__name__}: this kind of attention is not supported")
        head = Head(scaling or query.shape[-1] ** -0.5, sliding_window or 0)
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        return _attend(q, k, v, head, kernels).unsqueeze(0), None

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *positional, **named: None)


def _replace(model: nn.Module, fused: Callable[[nn.Module], nn.Module | None]) -> int:
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (part := fused(child)) is not None:
                setattr(parent, name, part)
                count += 1
    return count


def _fused_norm(part: nn.Module, kernels: Plain) -> nn.Module | None:
    weight = getattr(part, "weight", None)
    eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if not type(part).__name__.endswith("RMSNorm") or weight is None or not isinstance(eps, float):
        return None
    x = _random(7, len(weight)).to(weight)
    expected = part(x)
    for factor in (weight, weight.float() + 1):  # Gemma's weights are kept less one
        found = FusedNorm(factor, eps, kernels)
        if _alike(found(x), expected):
            return found
    return None


_ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")


def _fused_mlp(part: Any, kernels: Plain) -> nn.Module | None:
    if {name for name, _ in part.named_children()} - {"act_fn"} != {
        "gate_proj", "up_proj", "down_proj",
    }:  # fmt: skip
        return None
    weight = part.gate_proj.weight
    x = _random(1, 7, weight.shape[1]).to(weight)
    expected = part(x)
    for activation in _ACTIVATIONS:
        found = FusedMlp(part, activation, kernels)
        if _alike(found(x), expected):
            return found
    return None


def _fused_attention(part: Any, model: Any, kernels: Plain) -> nn.Module | None:
    names = {name for name, _ in part.named_children()} - {"q_norm", "k_norm"}
    if names != {"q_proj", "k_proj", "v_proj", "o_proj"} or not hasattr(part, "scaling"):
        return None
    weight = part.q_proj.weight
    x = _random(1, 7, weight.shape[1]).to(weight)
    angles = torch.arange(7).unsqueeze(1) * _random(1, part.head_dim // 2).abs()
    angles = torch.cat((angles, angles), -1).unsqueeze(0)
    cos_sin = angles.cos().to(weight), angles.sin().to(weight)
    fused = FusedAttention(part, kernels)
    with packed(Packing(torch.tensor([0, 7]))):
        try:
            expected = part(hidden_states=x, position_embeddings=cos_sin, attention_mask=None)
            found = fused(hidden_states=x, position_embeddings=cos_sin)
        except (TypeError, RuntimeError):  # its attention is called otherwise
            return None
    return fused if len(expected) == 2 and _alike(found[0], expected[0]) else None


@torch.no_grad()
def _probe(model: Any, one_by_one: bool) -> Tensor:
    """Hidden states of two random sequences: each alone, or both packed into one row."""
    device = next(model.parameters()).device
    lengths = [23, 18]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, words, (1, sum(lengths)), generator=generator).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
    if not one_by_one:
        with packed(Packing(starts)):
            whole = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        return whole.last_hidden_state[0]  # type: ignore[no-any-return]
    parts = [
        model.base_model(input_ids=part, use_cache=False).last_hidden_state[0]
        for part in torch.split(ids, lengths, 1)
    ]
    return torch.cat(parts)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _alike(found: Tensor, expected: Tensor) -> bool:
    share = 0.05 if found.dtype is torch.bfloat16 else 1e-3
    difference = (found.double() - expected.double()).norm()
    return bool(difference <= share * expected.double().norm())
