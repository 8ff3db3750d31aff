"""Triton's interpreter, which runs programs for graphics cards on the processor, one by one.

`conftest.py` asks for it. That of Triton 3.9 takes the bit patterns of bf16 for integers in
products, and rounds to bf16 and fp8 towards zero; here both are mended, the second by torch, which
rounds to the nearest as the cards do.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

_dot = interpreter.InterpreterBuilder.create_dot
_convert = interpreter._convert_float


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar is not tl.bfloat16:
        return handle
    wide = (handle.data.astype(numpy.uint32) << 16).view(numpy.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def _dot_of_bf16_too(self: Any, a: Any, b: Any, *others: Any) -> Any:
    return _dot(self, _wide(a), _wide(b), *others)


def _convert_as_torch(data: Any, kind: Any, wanted: Any, rounding: Any) -> Any:
    if kind != tl.float32 or wanted not in (tl.float8e4nv, tl.bfloat16):
        return _convert(data, kind, wanted, rounding)
    wide = torch.from_numpy(numpy.ascontiguousarray(data))
    if wanted == tl.bfloat16:
        return wide.to(torch.bfloat16).view(torch.uint16).numpy()
    return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


interpreter.InterpreterBuilder.create_dot = _dot_of_bf16_too
interpreter._convert_float = _convert_as_torch
