"""The kernels on a graphics card without Triton: plain ones, with torch's own attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selfchat.kernels.plain import ON_CARDS, Head, Plain


class Flash(Plain):
    """As `Plain`, but sequences of any length are attended to in one call, where numbers are bf16.

    By torch's build of FlashAttention-2 (Dao, 2023).
    """

    name = "plain, torch's attention"
    schemes = ON_CARDS

    def __init__(self) -> None:
        self._starts: Tensor | None = None
        self._there: tuple[Tensor, Tensor, int, int]

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        if not _suits(q):
            return super().attention(q, k, v, starts, head)
        found = torch.ops.aten._flash_attention_forward(
            q.contiguous(), k.contiguous(), v.contiguous(), *self._sequences(starts, q.device),
            0.0, True, False, **_weighing(head),
        )  # fmt: skip
        return found[0], found[1]

    def attention_backward(
        self, slope: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor,
        starts: Tensor, head: Head,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if not _suits(q):
            return super().attention_backward(slope, q, k, v, out, log_sums, starts, head)
        unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of its dropout
        with _added_in_order():
            found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
                slope.contiguous(), q.contiguous(), k.contiguous(), v.contiguous(), out, log_sums,
                *self._sequences(starts, q.device), 0.0, True, unused, unused[:0],
                **_weighing(head),
            )  # fmt: skip
        return found

    def _sequences(self, starts: Tensor, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
        """Where sequences begin and how long the longest is, of queries and of keys.

        All layers use it: to send it to the card, the processor waits.
        """
        if self._starts is not starts:
            there, longest = starts.to(device, torch.int32), int(starts.diff().max())
            self._starts, self._there = starts, (there, there, longest, longest)
        return self._there


def _suits(q: Tensor) -> bool:
    """Not every card has the gradient for heads of more than 192 numbers."""
    return q.is_cuda and q.dtype is torch.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 192


@contextmanager
def _added_in_order() -> Iterator[None]:
    """Within it torch's attention adds up in a fixed order, so that a run can be repeated."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def _weighing(head: Head) -> dict[str, Any]:
    window = {"window_size_left": head.window - 1, "window_size_right": 0} if head.window else {}
    return {"scale": head.scale, **window}
