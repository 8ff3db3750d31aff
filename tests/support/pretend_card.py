"""Runs a program as if there were a graphics card: its tensors say so, and the processor computes.

    python tests/support/pretend_card.py LIBRARY [--no-triton] tune --corpus ... (of `selfchat`)
    python tests/support/pretend_card.py LIBRARY [--no-triton] benchmarks/tune_kernels.py ...

LIBRARY is `pretend_card.cpp`, compiled. Everything that is done for a card is done: numbers are put
there, kernels are tried, timed and taken, memory is asked for. A computation fails where some of
its tensors are on the card and others are not, as on a real one. Triton's programs run in its
interpreter. What is timed is small; rates and memory mean nothing.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    ctypes.CDLL(str(Path(sys.argv[1]).resolve()))

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CAPABILITY, MEMORY = (9, 0), 140_000_000_000

# What may read tensors on the card and beside it.
_MIXING = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_")


class OnCard(Tensor):
    """A tensor on the card; its numbers are in `held`."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        return Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device("cuda:0"), requires_grad=held.requires_grad,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"OnCard({self.held})"

    @property
    def data(self) -> OnCard:
        return OnCard(self.held.data)

    @data.setter
    def data(self, other: OnCard) -> None:
        Tensor.data.__set__(self, other)
        self.held = other.held

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


class _Card(TorchDispatchMode):
    """Sees what makes tensors on the card from nothing, or from those beside it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = function._schema.name, tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    there = any(isinstance(each, OnCard) for each in tensors)
    beside = [each for each in tensors if not isinstance(each, OnCard) and each.ndim]
    if there and beside and name not in _MIXING:
        raise RuntimeError(f"{name}: some tensors are on the card, and some are not")
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    if name.startswith("aten::_flash_attention"):
        found = _flash_attention(name, *held_args, **held_kwargs)
    else:
        found = function(*held_args, **held_kwargs)
    if name == "aten::copy_":
        return args[0]
    if not (wanted[0].type == "cuda" if wanted else there):
        return found
    made = tree_map(lambda each: OnCard(each) if isinstance(each, Tensor) else each, found)
    return return_and_correct_aliasing(function, args, kwargs, made) if there else made


def _held(value: Any) -> Any:
    """What the processor computes with."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value.held if isinstance(value, OnCard) else value


def _flash_attention(name: str, *args: Any, **kwargs: Any) -> Any:
    """As torch's operators do it, which a processor lacks; the gradient by its formula."""
    from selfchat.kernels import plain

    window = kwargs.get("window_size_left")
    head = plain.Head(kwargs["scale"], 0 if window is None else window + 1)
    if name == "aten::_flash_attention_forward":
        return *plain.Plain().attention(*args[:4], head), None, None, None
    slope, q, k, v, out, log_sums, starts = args[:7]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for first, last in pairwise(starts.tolist()):
        d, queries, keys, values, y = (each[first:last].float() for each in (slope, q, k, v, out))
        shares = (plain._scores(queries, keys, head) - log_sums[:, first:last, None]).exp()
        d_shares = d.transpose(0, 1) @ plain._by_head(values, len(shares)).transpose(1, 2)
        d_scores = shares * (d_shares - (d * y).sum(-1).T.unsqueeze(-1)) * head.scale
        dq[first:last] = (d_scores @ plain._by_head(keys, len(shares))).transpose(0, 1)
        for found, weights, others in ((dk, d_scores, queries), (dv, shares, d)):
            by_head = weights.transpose(1, 2) @ others.transpose(0, 1)
            groups = by_head.view(k.shape[1], -1, *by_head.shape[1:])
            found[first:last] = groups.sum(1).transpose(0, 1)
    return dq, dk, dv


class _Event:
    """A mark in time."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        """Milliseconds; never none, though a clock may stand still."""
        return max(1e-6, 1000 * (other.at - self.at))


def pretend() -> None:
    """From here on there is a card."""
    card: dict[str, Any] = {
        "_initialized": True,
        "Event": _Event,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: "a card that is not there",
        "get_device_properties": lambda device=None: SimpleNamespace(
            uuid="0", multi_processor_count=132, total_memory=MEMORY
        ),
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "max_memory_allocated": lambda device=None: 1,
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, value in card.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # bitsandbytes looks for it
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **named: Any) -> Tensor:
        """It copies numbers to a card without asking anybody."""
        modes = reversed(_get_current_function_mode_stack())
        around = next((mode.device for mode in modes if isinstance(mode, DeviceContext)), "cpu")
        wanted = torch.device(device or around)
        if wanted.type != "cuda":
            return make(data, device=wanted, **named)
        return OnCard(make(data, device="cpu", **named))

    torch.tensor = tensor
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _time_little()


def _run_programs_here() -> None:
    from interpreter import mend
    from selfchat.kernels import gpu

    mend()
    launch = gpu.Triton._launch

    def numbers(program: Any, value: Any) -> Any:
        if isinstance(value, gpu._Described):
            return value._replace(matrix=numbers(program, value.matrix))
        if isinstance(value, Tensor) and not isinstance(value, OnCard):
            raise RuntimeError(f"{program.__name__}: a tensor is not on the card")
        return _held(value)

    def launched(self: Any, program: Any, grid: Any, *arguments: Any, **fixed: Any) -> None:
        launch(self, program, grid, *(numbers(program, each) for each in arguments), **fixed)

    gpu.Triton._launch = launched


def _time_little() -> None:
    """Products that tell a card's rates would take a processor hours."""
    from selfchat.kernels import best
    from selfchat.tune import here, limit, model

    best._TIMED = (64, 64, 64)
    here._SIDE, here._COPIED = 64, 1 << 12
    limit._ROWS["cuda"] = limit._SQUARE["cuda"] = 32
    model._TIMED_ON_A_CARD, model._TIMED_TOKENS = 64, 32


def main() -> None:
    arguments = sys.argv[2:]
    pretend()
    if arguments[0] == "--no-triton":
        arguments = arguments[1:]
        sys.modules["triton"] = None  # type: ignore[assignment]
    else:
        _run_programs_here()
    with _Card():
        if arguments[0].endswith(".py"):
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            return
        from selfchat.cli import main as command

        sys.argv = ["selfchat", *arguments]
        command()


if __name__ == "__main__":
    main()
