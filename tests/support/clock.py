"""An event loop whose clock jumps to the next thing that is due: hours of pacing in a moment."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing but, for `grace` seconds, for threads and sockets: time passes instead."""

    def __init__(self, grace: float) -> None:
        super().__init__()
        self._grace = grace
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select()
        ready = super().select(min(timeout, self._grace))
        if not ready:
            self.passed += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, grace: float) -> None:
        self._jumping = _Jumping(grace)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed


def run_jumping(work: Coroutine[Any, Any, T], grace: float = 0.0) -> T:
    """Run `work` as asyncio.run does, on a clock of its own."""
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(grace)) as runner:
        return runner.run(work)
