"""How fast calls may go: requests and tokens a minute, and pauses between attempts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]

ATTEMPTS = 6
FIRST_ATTEMPTS = 3  # to connect, while the endpoint has never answered
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0


class Bucket:
    """A token bucket: `per_minute` units a minute, of which two seconds' worth may come at once."""

    def __init__(self, per_minute: int | None, sleep: Sleep = asyncio.sleep) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._sleep = sleep
        self._free_at = time.monotonic()

    async def take(self, amount: float) -> None:
        """Wait until `amount` more units may go; callers are served in the order they came."""
        if self._rate is None:
            return
        now = time.monotonic()
        start = max(self._free_at, now - 2.0)
        self._free_at = start + amount / self._rate
        if start > now:
            await self._sleep(start - now)


def pause(attempt: int, retry_after: float | None, jitter: random.Random) -> float:
    """Seconds to wait after failed `attempt` (from 1): full jitter, never less than asked for."""
    if retry_after is not None:
        return retry_after + jitter.uniform(0, 1)
    return jitter.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))
