"""Calls made in a provider's batches: what all dialogues ask next goes into one.

A batch is in the journal before it is made and carries a mark, by which it is found again after a
crash. What a batch answered is kept even where the rest of it expired or failed.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from selfchat.calls.budget import Budget, cost_of
from selfchat.calls.caller import Prepared, utc_now
from selfchat.calls.journal import Entry, Journal
from selfchat.calls.pacing import pause
from selfchat.calls.prices import Price
from selfchat.core.errors import BudgetReached, Interrupted, SelfchatError
from selfchat.core.records import Reason
from selfchat.models.base import Busy, Lost, Model, ModelFailed, Refused, Reply
from selfchat.models.remote_batches import (
    MOST_BYTES,
    MOST_REQUESTS,
    BatchState,
    RemoteBatches,
    not_taken,
)

ROUNDS = 3  # batches that a call may be in without being answered
_FIRST_LOOK, _LAST_LOOK = 1.0, 60.0  # seconds between looks at a batch
_TRIES = 8  # to reach the provider, before giving up
Say = Callable[[str], None]


Got = TypeVar("Got")


class _Asked(NamedTuple):
    prepared: Prepared
    answer: asyncio.Future[tuple[Entry, Reply]]
    rounds: int  # batches that it was in


class Courier:
    """Takes batches to the provider and brings back what became of them, through the journal."""

    def __init__(self, batches: RemoteBatches, journal: Journal, say: Say) -> None:
        self._batches, self._journal, self._say = batches, journal, say
        self._stopped = asyncio.Event()
        self._jitter = random.Random()

    def stop(self) -> None:
        self._stopped.set()

    async def recover(self) -> None:
        """Bring in what an earlier run gave to the provider."""
        for batch in self._journal.open_batches():
            provider_id = batch.provider_id
            if provider_id is None:
                provider_id = await self._reached(partial(self._batches.find, batch.mark))
            if provider_id is None:
                await self._end(batch.id, None)
                continue
            self._say(f"batch {provider_id} of an earlier run: waiting for it")
            await self._journal.batch_is(batch.id, "submitted", provider_id)
            await self.bring(batch.id, provider_id)

    async def send(self, calls: Sequence[Prepared]) -> tuple[int, str]:
        """Make a batch of calls; give the journal's number of it and the provider's id."""
        mark = f"selfchat-{uuid.uuid4().hex}"
        number = await self._journal.intend_batch(mark, utc_now())
        await asyncio.gather(*(self._intend(call, number) for call in calls))
        rows = [self._batches.row(call.intent.label, call.request) for call in calls]
        provider_id = await self._submit(rows, mark)
        await self._journal.batch_is(number, "submitted", provider_id)
        self._say(f"batch {provider_id}: {len(calls):,} calls given to the provider")
        return number, provider_id

    async def _intend(self, call: Prepared, batch: int) -> None:
        if call.entry is None:
            await self._journal.intend(call.intent, utc_now(), batch)
        else:
            await self._journal.intend_again(call.entry.id, utc_now(), batch)

    async def _submit(self, rows: Sequence[bytes], mark: str) -> str:
        """Make the batch once: after a lost answer, look whether it is there."""
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._batches.submit(rows, mark)
            except Lost:
                await self._rest(pause(attempt, self._jitter))
                found = await self._reached(partial(self._batches.find, mark))
                if found is not None:
                    return found
            except Busy as busy:
                await self._rest(max(pause(attempt, self._jitter), busy.retry_after or 0.0))
        raise ModelFailed("the provider takes no batch; run the same command again to go on")

    async def bring(self, number: int, provider_id: str) -> dict[str, Exception]:
        """Wait for a batch and keep its answers; give the faults of calls that have none.

        Raises:
            Busy: the provider has no room for a batch of that size now.
            ModelFailed: it will not take such a batch.
            Interrupted: `stop` was called; the batch goes on at the provider.
        """
        state = await self._ended(provider_id)
        waiting = self._journal.waiting_in(number)
        faults: dict[str, Exception] = {}
        for file in state.files:
            lines = await self._reached(partial(self._batches.lines, file))
            kept = []
            for line in lines:
                if line.label not in waiting:
                    continue
                if line.answer is not None:
                    answer, call = line.answer, waiting.pop(line.label)
                    kept.append(
                        self._journal.keep(call, answer.raw, answer.request_id, 0.0, utc_now())
                    )
                elif line.fault is not None:
                    faults[line.label] = line.fault
            await asyncio.gather(*kept)
        await self._end(number, provider_id)
        if state.status in ("failed", "cancelled") and not state.files:
            raise not_taken(state)
        return faults

    async def _ended(self, provider_id: str) -> BatchState:
        look, shown = _FIRST_LOOK, -1
        while True:
            state = await self._reached(partial(self._batches.state, provider_id))
            if state.ended:
                return state
            if state.done != shown and state.total:
                shown = state.done
                self._say(f"batch {provider_id}: {state.status}, {shown:,} of {state.total:,}")
            await self._rest(look)
            look = min(look * 1.5, _LAST_LOOK)

    async def _end(self, number: int, provider_id: str | None) -> None:
        """Nothing more will come of the batch: its unanswered calls cost nothing."""
        waiting = self._journal.waiting_in(number)
        await asyncio.gather(*(self._journal.withdraw(call) for call in waiting.values()))
        await self._journal.batch_is(number, "ended", provider_id)

    async def _reached(self, ask: Callable[[], Awaitable[Got]]) -> Got:
        """Ask the provider something that costs nothing, again where that may help."""
        for attempt in range(1, _TRIES):
            try:
                return await ask()
            except Busy as busy:
                await self._rest(max(pause(attempt, self._jitter), busy.retry_after or 0.0))
        try:
            return await ask()
        except Busy as busy:
            raise ModelFailed(f"{busy}: run the same command again to go on") from None

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return
        self.refuse_when_stopped()

    def refuse_when_stopped(self) -> None:
        if self._stopped.is_set():
            raise Interrupted(
                "stopped; what the provider was given goes on there: run the same command again"
            )


class Batches:
    """A line that gathers calls until every talker waits for one, and sends them together."""

    def __init__(
        self,
        model: Model,
        price: Price | None,
        journal: Journal,
        budget: Budget,
        courier: Courier,
        talkers: int,
    ) -> None:
        self._model, self._price = model, price
        self._journal, self._budget, self._courier = journal, budget, courier
        self._talkers = talkers
        self._asked: list[_Asked] = []
        self._most = MOST_REQUESTS
        self._wave: asyncio.Task[None] | None = None

    def stop(self) -> None:
        self._courier.stop()

    def left(self) -> None:
        """One talker has nothing more to ask."""
        self._talkers -= 1
        self._look()

    async def fetch(self, prepared: Prepared) -> tuple[Entry, Reply]:
        answer: asyncio.Future[tuple[Entry, Reply]] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(prepared, answer, 0))
        self._look()
        return await answer

    def _look(self) -> None:
        """Send what was asked once nobody can ask more before being answered."""
        if self._wave is None and self._asked and len(self._asked) >= self._talkers:
            self._wave = asyncio.create_task(self._send())

    async def _send(self) -> None:
        asked, self._asked = self._asked, []
        holding: list[_Asked] = []
        try:
            self._courier.refuse_when_stopped()
            holding = self._affordable(asked)
            again = await self._exchange(holding)
        except SelfchatError as error:
            _fail(asked, error)
        else:
            self._asked = [*again, *asked[len(holding) :], *self._asked]
        finally:
            for one in holding:
                self._budget.release(one.prepared.worst)
        self._wave = None
        self._look()

    def _affordable(self, asked: Sequence[_Asked]) -> list[_Asked]:
        """The first calls, as many as the budget has room for at their worst."""
        held: list[_Asked] = []
        for one in asked:
            if fault := self._budget.hold(one.prepared.worst):
                if not held:
                    raise BudgetReached(fault)
                break
            held.append(one)
        return held

    async def _exchange(self, asked: Sequence[_Asked]) -> list[_Asked]:
        """Have calls answered in batches; give those that must be asked again."""
        again: list[_Asked] = []
        sent = [
            (part, await self._courier.send([one.prepared for one in part]))
            for part in self._parts(asked)
        ]
        for part, (number, provider_id) in sent:
            try:
                faults = await self._courier.bring(number, provider_id)
            except Busy as busy:
                again += self._smaller(part, busy)
            else:
                again += self._settled(part, faults)
        return again

    def _parts(self, asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
        """Cut calls into batches that the provider takes."""
        part: list[_Asked] = []
        size = 0
        for one in asked:
            bytes_of_it = 2 * len(one.prepared.intent.request)  # as JSON with escapes, about
            if part and (len(part) >= self._most or size + bytes_of_it > MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(one)
            size += bytes_of_it
        if part:
            yield part

    def _smaller(self, part: Sequence[_Asked], busy: Busy) -> list[_Asked]:
        """The provider's queue is too short for such a batch: make smaller ones."""
        if len(part) == 1:
            raise ModelFailed(f"the provider takes no batch: {busy}")
        self._most = max(1, len(part) // 2)
        return [self._anew(one) for one in part]

    def _settled(self, part: Sequence[_Asked], faults: dict[str, Exception]) -> list[_Asked]:
        """Tell each caller its answer or fault; give those that the batch left out."""
        again = []
        for one in part:
            entry = self._journal.entry(one.prepared.intent.key)
            fault = faults.get(one.prepared.intent.label)
            if entry is not None and entry.raw is not None:
                reply = self._model.read(entry.raw)
                cost = cost_of(reply.usage, self._price) if reply.usage else one.prepared.worst
                self._budget.charge(cost)
                one.answer.set_result((entry, reply))
            elif fault is not None:
                one.answer.set_exception(fault)
            elif one.rounds + 1 >= ROUNDS:
                detail = f"not answered in {ROUNDS} batches"
                one.answer.set_exception(Refused(Reason.GAVE_UP, detail))
            else:
                again.append(self._anew(one)._replace(rounds=one.rounds + 1))
        return again

    def _anew(self, one: _Asked) -> _Asked:
        """The same call, which the journal knows by now."""
        entry = self._journal.entry(one.prepared.intent.key)
        return one._replace(prepared=one.prepared._replace(entry=entry))


def _fail(asked: Sequence[_Asked], error: SelfchatError) -> None:
    for one in asked:
        if not one.answer.done():
            one.answer.set_exception(error)
