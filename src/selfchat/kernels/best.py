"""Which kernels to take on a device: the fastest that compute there what they should.

Kernels for a card are compiled there, by compilers that differ from place to place; so each is
tried on random numbers beside the plain one before any is trusted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfchat.kernels.flash import Flash
from selfchat.kernels.native import NoCompiler, native
from selfchat.kernels.plain import Bits, Dropout, Head, Plain, Quantised

_FP8_FROM, _TRITON_FROM = (8, 9), (8, 0)
_ROUNDING = 0.02  # of the largest number, by which results in bf16 may differ
_TIMED = (8192, 4096, 4096)  # rows, outputs and depth of the product that is timed


def best_kernels(device: torch.device, wanted: str | None = None) -> tuple[Plain, str]:
    """The fastest kernels for the device, and why they are not faster, if that can be mended.

    Args:
        wanted: the name of kernels that are taken, if they are to be had here, though others may be
            faster: those that a run began with.
    """
    if wanted == Plain.name:
        return Plain(), ""
    if device.type == "cuda":
        return _for_card(device, wanted)
    try:
        return native(), ""
    except NoCompiler as error:
        return Plain(), str(error)


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies matrices in fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_FROM


def _for_card(device: torch.device, wanted: str | None) -> tuple[Plain, str]:
    capability = torch.cuda.get_device_capability(device)
    if wanted == Flash.name or capability < _TRITON_FROM:
        return _stock(device, "")
    try:
        from selfchat.kernels.gpu import Triton
    except ImportError:
        return _stock(device, "tuning is faster with Triton: pip install triton")
    bits: tuple[Bits, ...] = ("int8", "fp8") if has_fp8(device) else ("int8",)
    own = Triton(capability)
    if why := unlike(own, device, bits):
        return _stock(device, f"the Triton kernels are left out, as {why}")
    if "fp8" not in bits or wanted == own.name:
        return own, ""
    library = Triton(capability, library=True)
    if unlike(library, device, ("fp8",)):
        return own, ""
    if wanted == library.name:
        return library, ""
    return min((own, library), key=lambda each: _product_seconds(each, device)), ""


def _stock(device: torch.device, lacking: str) -> tuple[Plain, str]:
    """What torch alone offers on a card, and what is lacking there."""
    why = unlike(Flash(), device, ())
    if not why:
        return Flash(), lacking
    return Plain(), "; ".join(filter(None, (lacking, f"torch's attention is left out, as {why}")))


def unlike(kernels: Plain, device: torch.device, bits: tuple[Bits, ...]) -> str:
    """In what the kernels differ from the plain ones on this device; nothing where they agree."""
    twin = Plain()
    twin.schemes = kernels.schemes
    for name, trial in _trials(device, bits):
        try:
            found, expected = trial(kernels), trial(twin)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers have errors of their own
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"{name} fails on this card: {first[:160]}"
        if not all(_alike(*pair) for pair in zip(found, expected, strict=True)):
            return f"{name} gives other results on this card"
    return ""


def _trials(
    device: torch.device, bits: tuple[Bits, ...]
) -> Iterator[tuple[str, Callable[[Plain], tuple[Tensor, ...]]]]:
    """Computations that use every kernel, and their names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows, width, heads, size, rank = 140, 320, 4, 64, 8
    starts = torch.tensor([0, 70, 71, rows])
    x, slope, weight = draw(rows, width), draw(rows, width), draw(width, dtype=torch.float32)
    q = draw(rows, heads, size)
    turn = draw(rows, size, dtype=torch.float32)
    down, across = draw(rank, width, dtype=torch.float32), draw(rows, rank, dtype=torch.float32)
    dropout = Dropout(torch.arange(rows, device=device) * 7919, 0.3)
    logits = draw(rows, 1000, dtype=torch.float32)
    targets = torch.arange(rows, device=device)

    def norm(each: Plain) -> tuple[Tensor, ...]:
        y, inverse = each.rms_norm(x, weight, 1e-6)
        return y, inverse, each.rms_norm_backward(slope, x, weight, inverse)

    def gate(each: Plain) -> tuple[Tensor, ...]:
        return each.gated(x, slope, "silu"), *each.gated_backward(slope, x, x, "silu")

    def rotation(each: Plain) -> tuple[Tensor, ...]:
        return each.rotate(q, turn, turn), each.rotate(q, turn, turn, backward=True)

    def attention(each: Plain) -> tuple[Tensor, ...]:
        return tuple(part for case in cases for part in _attended(each, case, starts))

    cases = [
        _Case([draw(rows, count, wide_head, dtype=kind) for count in (heads, 2, 2, heads)], head)
        for wide_head, kind, head in (
            (size, torch.bfloat16, Head(size**-0.5)),
            (128, torch.bfloat16, Head(0.1, window=50)),
            (128, torch.float32, Head(0.1)),
        )
    ]

    def loss(each: Plain) -> tuple[Tensor, ...]:
        slopes = logits.clone()
        return each.cross_entropy(slopes, targets), slopes

    def reading(each: Plain) -> tuple[Tensor, ...]:
        read, y = each.read(x, down, across, dropout), x.clone()
        each.add_dropped(y, (across, down), dropout)
        assert read.low is not None
        assert read.sums is not None
        return read.low, read.sums, y

    yield from (
        ("the norm", norm), ("the gate", gate), ("the rotation", rotation),
        ("attention", attention), ("the loss", loss), ("reading rows", reading),
    )  # fmt: skip
    matrix, bias = draw(3 * width, width), draw(3 * width, dtype=torch.float32)
    wide, up = draw(rows, 3 * width), draw(rank, 3 * width, dtype=torch.float32)
    down_wide = draw(rank, 3 * width, dtype=torch.float32)
    for kind in bits:

        def products(each: Plain, kind: Bits = kind) -> tuple[Tensor, ...]:
            held = each.eight_bit_weight(matrix, kind)
            few, y = (
                each.eight_bit_product(
                    _rows(each, x[:count], kind), held, bias, (across[:count], up), dtype=x.dtype
                )
                for count in (40, rows)
            )
            if held.scales is None or not each.schemes[kind].turns:
                return few, y
            back = each.eight_bit_product(
                _rows(each, wide, kind, held.scales.flatten()), each.turned(held), None,
                (across, down), into=x.clone(),
            )  # fmt: skip
            read = each.read(wide, down_wide, across, None, kind, held.scales.flatten())
            assert read.quantised is not None
            assert read.low is not None
            again = each.eight_bit_product(read.quantised, each.turned(held), dtype=x.dtype)
            return few, y, back, again, read.low

        yield f"the {kind} product", products


class _Case(NamedTuple):
    """Queries, keys, values and a slope, and how attention weighs."""

    tensors: list[Tensor]
    head: Head


def _attended(kernels: Plain, case: _Case, starts: Tensor) -> tuple[Tensor, ...]:
    q, k, v, slope = case.tensors
    out, log_sums = kernels.attention(q, k, v, starts, case.head)
    return out, *kernels.attention_backward(slope, q, k, v, out, log_sums, starts, case.head)


def _rows(kernels: Plain, x: Tensor, bits: Bits, columns: Tensor | None = None) -> Quantised:
    held = kernels.read(x, bits=bits, columns=columns).quantised
    assert held is not None
    return held


def _alike(found: Tensor, expected: Tensor) -> bool:
    most = expected.abs().max().double()
    return bool((found.double() - expected.double()).abs().max() <= _ROUNDING * most)


def _product_seconds(kernels: Plain, device: torch.device) -> float:
    """Of a forward product and its gradient in fp8, each with a low-rank term."""
    rows, outputs, depth = _TIMED
    x = torch.randn(rows, depth, device=device, dtype=torch.bfloat16)
    y = torch.randn(rows, outputs, device=device, dtype=torch.bfloat16)
    weight = kernels.eight_bit_weight(torch.randn(outputs, depth, device=device), "fp8")
    turned = kernels.turned(weight)
    u, a, b = (
        torch.randn(*shape, device=device) for shape in ((rows, 8), (8, depth), (8, outputs))
    )
    forward, backward = _rows(kernels, x, "fp8"), _rows(kernels, y, "fp8")

    def both() -> None:
        kernels.eight_bit_product(forward, weight, None, (u, b), dtype=torch.bfloat16)
        kernels.eight_bit_product(backward, turned, None, (u, a), into=x)

    return median_seconds(both)


def median_seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Of work on the current card, after some to warm up, by the card's own clock."""
    for _ in range(3):
        work()
    marks: list[Any] = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(repeats + 1)
    ]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    seconds: list[float] = [one.elapsed_time(other) / 1000 for one, other in pairwise(marks)]
    return statistics.median(seconds)
