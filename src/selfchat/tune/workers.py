"""The processes that tune together, as `torchrun` starts them; one where nothing started more.

Each takes a share of a step's dialogues. The sums over all of them are the same numbers in every
process, so that all take the same step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from selfchat.models.packing import dealt


class Workers:
    """This process among those that tune together."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The places of the sequences that are this process' part, about as long as the others'."""
        if self.count == 1:
            return list(range(len(lengths)))
        groups = dealt(lengths, self.count)
        return groups[self.rank]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return (self.count > 1 and bool(self.sum_(torch.tensor(float(flag))))) or flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_workers(device: torch.device) -> Iterator[Workers]:
    """The processes that `torchrun` started, or this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
