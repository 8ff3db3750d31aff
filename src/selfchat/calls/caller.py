"""Asking a model with a journal, a budget and a pace: the only way to make a call that costs."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from selfchat.calls.journal import Journal
from selfchat.calls.pacing import ATTEMPTS, FIRST_ATTEMPTS, Bucket, Sleep, pause
from selfchat.calls.prices import Price
from selfchat.core.errors import BudgetReached, Interrupted, UsageError
from selfchat.core.records import Reason, Usage, canonical_json
from selfchat.models.base import (
    Busy,
    Lost,
    Model,
    ModelFailed,
    Refused,
    Reply,
    Request,
    Unreachable,
    Unwelcome,
    request_values,
)

_BYTES_A_TOKEN = 2.5  # low, so that the reserved cost of a prompt is rather too high


class Limits(NamedTuple):
    """What a run may spend and how fast; None is no limit."""

    concurrency: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None


class Told(NamedTuple):
    """A reply with what is known of its call."""

    reply: Reply
    price: float | None
    seconds: float
    finished: str


class Caller:
    """Makes each call once, in order of arrival, within the limits.

    The limits on money and tokens count the most that every unanswered call may cost, and what the
    journal says was spent before.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        price: Price | None,
        limits: Limits,
        prompt_version: str,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if limits.max_cost is not None and price is None:
            raise UsageError(
                f"the price of {model.address} is unknown, so --max-cost cannot be kept: set "
                "collect.price_in and collect.price_out (dollars per million tokens)"
            )
        self.model = model
        self.price = price
        self._journal, self._limits = journal, limits
        self._prompt_version = prompt_version
        self._sleep = sleep
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._requests = Bucket(limits.requests_per_minute, self._rest)
        self._tokens = Bucket(limits.tokens_per_minute, self._rest)
        self._jitter = random.Random()
        self._last_answer = -math.inf
        self._stopped = asyncio.Event()
        spent = journal.spent()
        self.ambiguous = spent.ambiguous
        self._ever_answered = spent.answered > 0
        self.spent_tokens, self.spent_dollars = spent.tokens, spent.dollars
        self._held_tokens, self._held_dollars = 0, 0.0
        self._released = asyncio.Event()

    def stop(self) -> None:
        """Let calls under way come back, and make no other."""
        self._stopped.set()

    def key(self, request: Request) -> str:
        """SHA-256 of everything that the answer depends on; the endpoint's address is not of it."""
        identity = {
            "model": self.model.address,
            "provider": self.model.provider,
            "prompt_version": self._prompt_version,
            **request_values(request),
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    async def ask(self, request: Request) -> Told:
        """The reply to a request, from the journal when it was made before.

        Raises:
            Refused: this request will never have a useful answer.
            BudgetReached: the call might exceed a limit, so it was not made.
            Interrupted: `stop` was called.
            SelfchatError: no call can succeed.
        """
        key = self.key(request)
        known = self._journal.answer(key)
        if known is not None:
            reply = self.model.read(known.raw)
            if not known.described:
                await self._describe(key, reply)
            return Told(reply, self._cost(reply), known.seconds, known.finished)
        worst = _worst_case(request)
        async with self._slots:
            self._refuse_when_stopped()
            raw, seconds, finished = await self._make(key, request, worst)
        reply = await self._understood(key, raw, worst)
        return Told(reply, self._cost(reply), seconds, finished)

    async def _make(self, key: str, request: Request, worst: Usage) -> tuple[str, float, str]:
        began = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._reserved(worst):
                    return await self._send(key, request, worst)
            except Busy as busy:
                if isinstance(busy, Lost):
                    self._charge(worst)
                await self._wait(attempt, busy, began)
        raise AssertionError("the last attempt waits by raising")

    async def _send(self, key: str, request: Request, worst: Usage) -> tuple[str, float, str]:
        """Make one attempt; one that cost nothing leaves no trace in the journal."""
        await self._requests.take(1)
        await self._tokens.take(worst.total)
        await self._journal.intend(
            key,
            self.model.address,
            self.model.provider,
            canonical_json(request_values(request)),
            worst.total,
            self._dollars(worst),
            _now(),
        )
        began = time.monotonic()
        try:
            raw = await self.model.send(request)
        except Lost:
            raise
        except Unwelcome as fault:
            await self._journal.withdraw(key)
            if self._ever_answered:
                raise
            raise ModelFailed(f"{self.model.address}: {fault}") from None
        except Exception:
            await self._journal.withdraw(key)
            raise
        seconds, finished = time.monotonic() - began, _now()
        await self._journal.keep(key, raw, seconds, finished)
        self._last_answer, self._ever_answered = time.monotonic(), True
        return raw, seconds, finished

    async def _wait(self, attempt: int, busy: Busy, began: float) -> None:
        """Pause before another attempt, or give up: alone where other calls were answered since."""
        never_there = isinstance(busy, Unreachable) and self._last_answer == -math.inf
        if attempt < (FIRST_ATTEMPTS if never_there else ATTEMPTS):
            await self._rest(pause(attempt, busy.retry_after, self._jitter))
            return
        if self._last_answer > began:
            raise Refused(Reason.GAVE_UP, f"after {attempt} attempts: {busy}")
        raise ModelFailed(
            f"{self.model.address} does not answer ({busy}): check the network and --base-url, "
            "then run the same command again"
        )

    async def _rest(self, seconds: float) -> None:
        """Sleep; `stop` ends it."""
        waits = [
            asyncio.ensure_future(self._sleep(seconds)),
            asyncio.ensure_future(self._stopped.wait()),
        ]
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        self._refuse_when_stopped()

    def _refuse_when_stopped(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("stopped; run the same command again to go on")

    async def _understood(self, key: str, raw: str, worst: Usage) -> Reply:
        """Parse an answer that is on disk, and add what it says of itself to the journal.

        An answer that does not say what it used is charged at the most that it may have used.
        """
        try:
            reply = self.model.read(raw)
        except Refused:
            self._charge(worst)
            raise
        self._charge(reply.usage or worst)
        await self._describe(key, reply)
        return reply

    async def _describe(self, key: str, reply: Reply) -> None:
        cost = self._cost(reply)
        await self._journal.describe(key, reply.model, reply.request_id, reply.usage, cost)

    def _charge(self, usage: Usage) -> None:
        self.spent_tokens += usage.total
        self.spent_dollars += self._dollars(usage)

    def _dollars(self, usage: Usage) -> float:
        return self.price.of(usage) if self.price else 0.0

    def _cost(self, reply: Reply) -> float | None:
        return self.price.of(reply.usage) if self.price and reply.usage else None

    @asynccontextmanager
    async def _reserved(self, worst: Usage) -> AsyncIterator[None]:
        """Hold what a call may cost at most, waiting for calls under way where that helps."""
        tokens, dollars = worst.total, self._dollars(worst)
        while fault := self._over(tokens, dollars):
            if not self._held_tokens:
                raise BudgetReached(fault)
            self._released.clear()
            await self._released.wait()
            self._refuse_when_stopped()
        self._held_tokens += tokens
        self._held_dollars += dollars
        try:
            yield
        finally:
            self._held_tokens -= tokens
            self._held_dollars -= dollars
            self._released.set()

    def _over(self, tokens: int, dollars: float) -> str:
        """Why another call of that size may not be made now; empty when it may."""
        limits = self._limits
        all_tokens = self.spent_tokens + self._held_tokens + tokens
        all_dollars = self.spent_dollars + self._held_dollars + dollars
        if limits.max_tokens is not None and all_tokens > limits.max_tokens:
            return (
                f"stopped before going over --max-tokens {limits.max_tokens} "
                f"({self.spent_tokens} spent): raise it and run again to go on"
            )
        if limits.max_cost is not None and all_dollars > limits.max_cost:
            return (
                f"stopped before going over --max-cost {limits.max_cost} "
                f"(${self.spent_dollars:.4f} spent): raise it and run again to go on"
            )
        return ""


def _worst_case(request: Request) -> Usage:
    """About the most tokens that a call can use."""
    size = sum(len(message.content.encode()) + 20 for message in request.messages)
    return Usage(
        prompt_tokens=int(size / _BYTES_A_TOKEN) + 10,
        completion_tokens=request.sampling.max_tokens,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
