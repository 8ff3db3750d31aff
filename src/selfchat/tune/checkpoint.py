"""A checkpoint: all that a run needs to go on as if it had never stopped, in one safetensors file.

It is written whole or not at all. The draws of a step depend only on the recipe's seed and the
step's number, so no random state has to be kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfchat.core.files import written_whole
from selfchat.models.bases import WeightKind

FILE = "checkpoint.safetensors"


class Progressed(NamedTuple):
    """Where a run stands: optimizer steps done, and its seconds, joules and tokens so far."""

    step: int
    seconds: float
    joules: float
    tokens_seen: int
    tokens_trained: int


def save_checkpoint(
    folder: Path,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    at: Progressed,
    fingerprint: str,
    weights: str,
) -> None:
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        tensors[f"{index}.value"] = parameter.detach()
        for name, value in optimizer.state[parameter].items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    metadata = {
        "fingerprint": fingerprint,
        "weights": weights,
        **{name: repr(value) for name, value in at._asdict().items()},
    }
    with written_whole(folder / FILE) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata
        )


def checkpoint_weights(folder: Path, fingerprint: str) -> WeightKind | None:
    """How the base was held in the folder's checkpoint; None where there is none of this run."""
    metadata = _metadata(folder / FILE)
    if metadata.get("fingerprint") != fingerprint:
        return None
    kinds: tuple[WeightKind, ...] = ("fp32", "bf16", "int8")
    return next((kind for kind in kinds if kind == metadata.get("weights")), None)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (FileNotFoundError, SafetensorError):
        return {}


def load_checkpoint(
    folder: Path,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> Progressed | None:
    """Take up the folder's checkpoint; None where there is none of this very run."""
    metadata = _metadata(folder / FILE)
    if metadata.get("fingerprint") != fingerprint:
        return None
    tensors = load_file(folder / FILE)
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.copy_(tensors.pop(f"{index}.value"))
    for name, tensor in tensors.items():
        place, _, key = name.partition(".")
        parameter = parameters[int(place)]
        on = tensor if key == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][key] = on
    return Progressed(
        step=int(metadata["step"]),
        seconds=float(metadata["seconds"]),
        joules=float(metadata["joules"]),
        tokens_seen=int(metadata["tokens_seen"]),
        tokens_trained=int(metadata["tokens_trained"]),
    )
