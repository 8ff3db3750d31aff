"""Asking a model with a journal, a budget and a pace: the only way to make a call that costs."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from datetime import UTC, datetime
from typing import NamedTuple

from selfchat.calls.journal import Journal
from selfchat.calls.pacing import ATTEMPTS, Bucket, Sleep, pause
from selfchat.calls.prices import Price
from selfchat.core.errors import BudgetReached, Interrupted, UsageError
from selfchat.core.records import Reason, Usage, canonical_json
from selfchat.models.base import Busy, Model, ModelFailed, Refused, Reply, Request, request_values

_BYTES_A_TOKEN = 2.5  # low, so that the reserved cost of a prompt is rather too high


class Limits(NamedTuple):
    """What a run may spend and how fast; None is no limit."""

    concurrency: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None


class Told(NamedTuple):
    """A reply with what is known of its call; `fresh` when it was made now and not before."""

    reply: Reply
    key: str
    price: float | None
    seconds: float
    finished: str
    fresh: bool


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
        self._requests = Bucket(limits.requests_per_minute, sleep)
        self._tokens = Bucket(limits.tokens_per_minute, sleep)
        self._jitter = random.Random()
        self._answered_once = False
        self._stopped = False
        spent = journal.spent()
        self.ambiguous = spent.ambiguous
        self.spent_tokens, self.spent_dollars = spent.tokens, spent.dollars
        self._held_tokens, self._held_dollars = 0, 0.0

    def stop(self) -> None:
        """Let calls under way come back, and make no other."""
        self._stopped = True

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
            return Told(reply, key, self._cost(reply), known.seconds, known.finished, fresh=False)
        worst = _worst_case(request)
        async with self._slots:
            if self._stopped:
                raise Interrupted("stopped; run the same command again to go on")
            raw, seconds, finished = await self._make(key, request, worst)
        reply = await self._understood(key, raw, worst)
        return Told(reply, key, self._cost(reply), seconds, finished, fresh=True)

    async def _make(self, key: str, request: Request, worst: Usage) -> tuple[str, float, str]:
        dollars = self.price.of(worst) if self.price else 0.0
        self._reserve(worst.total, dollars)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                await self._requests.take(1)
                await self._tokens.take(worst.total)
                await self._journal.intend(
                    key,
                    self.model.address,
                    self.model.provider,
                    canonical_json(request_values(request)),
                    worst.total,
                    dollars,
                    _now(),
                )
                began = time.monotonic()
                try:
                    raw = await self.model.send(request)
                except Busy as busy:
                    await self._journal.withdraw(key)
                    await self._wait(attempt, busy)
                    continue
                except Exception:
                    await self._journal.withdraw(key)
                    raise
                seconds, finished = time.monotonic() - began, _now()
                await self._journal.keep(key, raw, seconds, finished)
                self._answered_once = True
                return raw, seconds, finished
        finally:
            self._held_tokens -= worst.total
            self._held_dollars -= dollars
        raise AssertionError("the last attempt waits by raising")

    async def _wait(self, attempt: int, busy: Busy) -> None:
        if attempt < ATTEMPTS:
            await self._sleep(pause(attempt, busy.retry_after, self._jitter))
        elif self._answered_once:
            raise Refused(Reason.GAVE_UP, f"after {ATTEMPTS} attempts: {busy}")
        else:
            raise ModelFailed(
                f"{self.model.address} does not answer ({busy}): check the network and --base-url, "
                "then run the same command again"
            )

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
        cost = self._cost(reply)
        await self._journal.describe(key, reply.model, reply.request_id, reply.usage, cost)
        return reply

    def _charge(self, usage: Usage) -> None:
        self.spent_tokens += usage.total
        self.spent_dollars += self.price.of(usage) if self.price else 0.0

    def _cost(self, reply: Reply) -> float | None:
        return self.price.of(reply.usage) if self.price and reply.usage else None

    def _reserve(self, tokens: int, dollars: float) -> None:
        limits = self._limits
        all_tokens = self.spent_tokens + self._held_tokens + tokens
        all_dollars = self.spent_dollars + self._held_dollars + dollars
        if limits.max_tokens is not None and all_tokens > limits.max_tokens:
            raise BudgetReached(
                f"stopped before going over --max-tokens {limits.max_tokens} "
                f"({self.spent_tokens} spent): raise it and run again to go on"
            )
        if limits.max_cost is not None and all_dollars > limits.max_cost:
            raise BudgetReached(
                f"stopped before going over --max-cost {limits.max_cost} "
                f"(${self.spent_dollars:.4f} spent): raise it and run again to go on"
            )
        self._held_tokens += tokens
        self._held_dollars += dollars


def _worst_case(request: Request) -> Usage:
    """About the most tokens that a call can use."""
    size = sum(len(message.content.encode()) + 20 for message in request.messages)
    return Usage(
        prompt_tokens=int(size / _BYTES_A_TOKEN) + 10,
        completion_tokens=request.sampling.max_tokens,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
