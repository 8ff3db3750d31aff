"""The kernels on a graphics card without Triton: plain ones, with torch's own attention."""

from __future__ import annotations

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

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        if not _suits(q):
            return super().attention(q, k, v, starts, head)
        found = torch.ops.aten._flash_attention_forward(
            q.contiguous(), k.contiguous(), v.contiguous(), *_sequences(starts, q.device),
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
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            slope.contiguous(), q.contiguous(), k.contiguous(), v.contiguous(), out, log_sums,
            *_sequences(starts, q.device), 0.0, True, unused, unused[:0], **_weighing(head),
        )  # fmt: skip
        return found


def _suits(q: Tensor) -> bool:
    return q.is_cuda and q.dtype is torch.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _sequences(starts: Tensor, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Where sequences begin and how long the longest is, of queries and of keys."""
    there, longest = starts.to(device, torch.int32), int(starts.diff().max())
    return there, there, longest, longest


def _weighing(head: Head) -> dict[str, Any]:
    window = {"window_size_left": head.window - 1, "window_size_right": 0} if head.window else {}
    return {"scale": head.scale, **window}
