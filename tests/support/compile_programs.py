"""Compile every program for a graphics card that is not here; a line of JSON for each.

    python compile_programs.py CAPABILITY

as they are launched for a LLaMA-7B: registers that were spilled to memory, shared memory, and the
matrix instructions that were chosen.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from selfchat.kernels.gpu import Triton, _Described
from selfchat.kernels.plain import Bits, Dropout, Head

_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


class Absent:
    """A driver that knows which card there is, and cannot run anything on it."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class Compiling(Triton):
    def _launch(self, program: Any, grid: tuple[int, ...], *arguments: Any, **fixed: Any) -> None:
        given = [
            TensorDescriptor.from_tensor(each.matrix, list(each.block))
            if isinstance(each, _Described)
            else each
            for each in arguments
        ]
        made = program.warmup(*given, grid=grid, **fixed, enable_fp_fusion=True)
        spilled, static = _used(made.asm["cubin"])
        instructions = re.findall(
            r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*", made.asm["ptx"]
        )
        told = {
            "program": program.__name__,
            "fixed": {name: str(value) for name, value in fixed.items()},
            "wide": arguments[0].dtype is torch.float32 if torch.is_tensor(arguments[0]) else False,
            "spilled": spilled,
            "shared": made.metadata.shared + static,
            "instructions": sorted(set(instructions)),
            "copies": "cp.async" in made.asm["ptx"],
        }
        sys.stdout.write(json.dumps(told) + "\n")


def _used(code: bytes) -> tuple[int, int]:
    """Bytes of registers that were spilled, and of shared memory that is always taken."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+) SHARED:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])


def compile_all(kernels: Triton) -> None:
    tokens, hidden, inner, heads = 4096, 4096, 11008, 32
    bf16 = torch.bfloat16
    x, weight = torch.empty(tokens, hidden, dtype=bf16), torch.empty(hidden)
    kernels.rms_norm(x, weight, 1e-6)
    kernels.rms_norm_backward(x, x, weight, torch.empty(tokens))
    kernels.gated(x, x, "silu")
    kernels.gated_backward(x, x, x, "silu")
    q, turn = x.view(tokens, heads, -1), torch.empty(tokens, hidden // heads)
    kernels.rotate(q, turn, turn)
    starts = torch.tensor([0, 300, 1000, tokens])
    wide = x.view(tokens, 16, -1)
    for heads_of in (q, q.float(), wide, wide.float()):  # those of fp32 while models are probed
        out, log_sums = kernels.attention(heads_of, heads_of, heads_of, starts, Head(0.1))
        kernels.attention_backward(
            out, heads_of, heads_of, heads_of, out, log_sums, starts, Head(0.1)
        )
    kernels.cross_entropy(torch.empty(64, 32000), torch.zeros(64, dtype=torch.int64))
    dropout = Dropout(torch.zeros(tokens, dtype=torch.int64), 0.05)
    down, across = torch.empty(24, hidden), torch.empty(tokens, 8)
    kernels.read(x, down, None, dropout)
    kernels.read(x, down, across, None, "int8", weight)
    kernels.read(x.float(), down, across, None, "int8", weight)
    kernels.read(x, torch.empty(64, hidden), torch.empty(tokens, 64), None, "int8", weight)
    kernels.add_dropped(x, (torch.empty(tokens, 24), down), dropout)
    kernels.add_dropped(x, (torch.empty(tokens, 64), torch.empty(64, hidden)), dropout)
    kinds: list[Bits] = ["int8", "fp8"] if kernels.capability >= (8, 9) else ["int8"]
    for bits in kinds:
        held = kernels.eight_bit_weight(torch.empty(512, hidden, dtype=bf16), bits)
        low = torch.empty(tokens, 8), torch.empty(8, 512)
        rows = kernels.read(x, bits=bits).quantised
        assert rows is not None
        kernels.eight_bit_product(rows, held, None, low, dtype=bf16)
        kernels.eight_bit_product(rows, held, weight[:512], low, dtype=bf16)
        few = kernels.read(x[:40], bits=bits).quantised
        assert few is not None
        kernels.eight_bit_product(few, held, None, (low[0][:40], low[1]), dtype=bf16)
        back = kernels.read(x[:, :512].contiguous(), bits=bits, columns=weight[:512]).quantised
        assert back is not None
        low = torch.empty(tokens, 64), torch.empty(64, hidden)
        kernels.eight_bit_product(back, kernels.turned(held), None, low, into=x)
        kernels.read(torch.empty(64, inner, dtype=bf16), bits=bits)


if __name__ == "__main__":
    major, minor = sys.argv[1].split(".")
    card = int(major), int(minor)
    driver.set_active(Absent(card))
    compile_all(Compiling(card))
