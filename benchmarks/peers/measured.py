"""What the scripts of `tune_peers.py` print of a run: one line of JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

_TOLD_VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "selfchat")


class Measured(NamedTuple):
    """A run of so many optimizer steps, the first of them to warm up."""

    tokens: Sequence[int]  # of each step, without padding
    ends: Sequence[float]  # seconds at which each step ended, by any clock
    losses: Sequence[float]  # of each step, in nats per trained token
    told: dict[str, Any]  # what else a contestant says of itself

    def line(self) -> str:
        figures = {
            "steps": len(self.ends) - 1,
            "seconds": round(self.ends[-1] - self.ends[0], 3),
            "tokens": sum(self.tokens[1:]),
            "losses": [round(loss, 6) for loss in self.losses],
            "peak_mb": peak_megabytes(),
            "python": platform.python_version(),
            "versions": versions(),
            **self.told,
        }
        return json.dumps(figures)


def peak_megabytes() -> float:
    """The most memory that this process has held (the kernel's VmHWM)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return round(int(kibibytes) / 1024, 1)


def versions() -> dict[str, str]:
    found = {}
    for name in _TOLD_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
