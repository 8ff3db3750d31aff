"""Calls within their limits, by the endpoint's own count, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, failure, reply

from selfchat.calls.caller import Caller, Limits, Told
from selfchat.calls.journal import Journal
from selfchat.calls.pacing import ATTEMPTS, FIRST_ATTEMPTS
from selfchat.calls.prices import Price
from selfchat.core.errors import BudgetReached, Interrupted, SelfchatError, UsageError
from selfchat.core.records import Message, Reason, Sampling, Usage
from selfchat.models.base import (
    Busy,
    Lost,
    ModelFailed,
    Refused,
    Reply,
    Request,
    Unreachable,
    Unwelcome,
)
from selfchat.models.remote import RemoteModel

NO_LIMITS = Limits()
DEAR = Price(10.0, 30.0, "today")


def request(number: int, max_tokens: int = 100) -> Request:
    return Request(
        (Message(role="user", content=f"Why {number}?"),), Sampling(max_tokens=max_tokens)
    )


class Teller:
    """Does what the script says, one entry a call: an answer, or an exception to raise."""

    address, provider, speaks_as_user = "scripted:teller", "scripted", True

    def __init__(self, script: Sequence[str | Exception]) -> None:
        self.script = list(script)
        self.sent = 0

    async def send(self, request: Request) -> str:
        self.sent += 1
        await asyncio.sleep(0)
        entry = self.script.pop(0)
        if isinstance(entry, Exception):
            raise entry
        return entry

    def read(self, raw: str) -> Reply:
        if raw == "nonsense":
            raise Refused(Reason.BAD_ANSWER, raw)
        usage = None if raw == "silent" else Usage(prompt_tokens=5, completion_tokens=5)
        return Reply(raw, "stop", usage)

    async def close(self) -> None: ...


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


async def no_pause(seconds: float) -> None: ...


def caller(
    model: Any,
    journal: Journal,
    limits: Limits = NO_LIMITS,
    price: Price | None = None,
    **more: Any,
) -> Caller:
    return Caller(model, journal, price, limits, "p:1", **{"sleep": no_pause, **more})


async def outcomes(asked: Caller, numbers: range) -> list[Told | BaseException]:
    """All asked at once."""
    calls = (asked.ask(request(number)) for number in numbers)
    return await asyncio.gather(*calls, return_exceptions=True)


def answers(found: list[Told | BaseException]) -> int:
    return sum(isinstance(told, Told) for told in found)


def drawn_usage(body: dict[str, Any], number: int) -> Any:
    """Bills some tokens up to what was asked for, after a little while."""
    draws = random.Random(number)

    async def answer() -> Any:
        await asyncio.sleep(draws.uniform(0, 0.005))
        completion = draws.randint(1, body["max_tokens"])
        usage = {"prompt_tokens": draws.randint(5, 20), "completion_tokens": completion}
        return reply("Because.", usage=usage)

    return answer()


def through(
    endpoint: Endpoint, journal: Journal, limits: Limits, price: Price | None = None
) -> list[Told | BaseException]:
    async def session() -> list[Told | BaseException]:
        model = RemoteModel("m", endpoint.url)
        try:
            return await outcomes(caller(model, journal, limits, price), range(40))
        finally:
            await model.close()

    return asyncio.run(session())


@pytest.mark.parametrize("concurrency", [1, 7, 40])
def test_tokens_are_never_exceeded_and_a_raised_limit_goes_on(
    concurrency: int, journal: Journal
) -> None:
    with Endpoint(drawn_usage) as endpoint:
        for most in (150, 600, 1500):
            limits = Limits(concurrency, max_tokens=most)
            found = through(endpoint, journal, limits)
            assert most - 150 < endpoint.billed() <= most
            assert answers(found) == len(endpoint.ledger)
            failed = [told for told in found if not isinstance(told, Told)]
            assert failed
            assert all(isinstance(told, BudgetReached) for told in failed)
        assert answers(through(endpoint, journal, Limits())) == 40 == len(endpoint.ledger)


@pytest.mark.parametrize("concurrency", [1, 7])
def test_dollars_are_never_exceeded(concurrency: int, journal: Journal) -> None:
    with Endpoint(drawn_usage) as endpoint:
        for most in (0.005, 0.02, 0.03):
            through(endpoint, journal, Limits(concurrency, max_cost=most), DEAR)
            usage = Usage(
                prompt_tokens=endpoint.billed("prompt_tokens"),
                completion_tokens=endpoint.billed("completion_tokens"),
            )
            assert most - 0.005 < DEAR.of(usage) <= most


def test_calls_wait_for_those_under_way_rather_than_stop_too_early(journal: Journal) -> None:
    model = Teller(["yes"] * 5)
    found = asyncio.run(outcomes(caller(model, journal, Limits(max_tokens=180)), range(5)))
    assert answers(found) == 5


def test_answers_that_do_not_say_what_they_used_are_charged_at_their_most(journal: Journal) -> None:
    asked = caller(Teller(["silent", "nonsense", "silent"]), journal, Limits(max_tokens=300))
    found = asyncio.run(outcomes(asked, range(3)))
    assert [type(told) for told in found] == [Told, Refused, BudgetReached]
    assert 200 < asked.spent_tokens == journal.spent().tokens <= 300


def test_an_answer_lost_on_the_way_is_charged_and_survives_a_restart(journal: Journal) -> None:
    model = Teller([Lost("reset"), Lost("reset"), "yes"])
    asked = caller(model, journal, Limits(max_tokens=300))
    (found,) = asyncio.run(outcomes(asked, range(1)))
    assert isinstance(found, BudgetReached)
    assert model.sent == 2
    again = caller(model, journal, Limits(max_tokens=300))
    assert again.spent_tokens == asked.spent_tokens > 200
    assert again.ambiguous == 2


def test_refused_attempts_cost_nothing(journal: Journal) -> None:
    model = Teller([Busy("status 429"), Busy("status 500"), "yes"])
    asked = caller(model, journal, Limits(max_tokens=180))
    (found,) = asyncio.run(outcomes(asked, range(1)))
    assert isinstance(found, Told)
    assert asked.spent_tokens == journal.spent().tokens == 10


def test_a_call_that_failed_for_good_was_not_under_way(journal: Journal) -> None:
    asyncio.run(outcomes(caller(Teller([ModelFailed("401")]), journal), range(1)))
    assert journal.spent() == (0, 0.0, 0, 0)


def test_a_fault_found_with_one_request_rejects_it_only_where_others_were_answered(
    journal: Journal,
) -> None:
    async def one(script: list[Any], number: int) -> Told | BaseException:
        return (await outcomes(caller(Teller(script), journal), range(number, number + 1)))[0]

    unwelcome = Unwelcome(Reason.BAD_ANSWER, "flagged")
    assert isinstance(asyncio.run(one([unwelcome], 0)), ModelFailed)
    assert isinstance(asyncio.run(one(["yes"], 1)), Told)
    assert isinstance(asyncio.run(one([unwelcome], 0)), Refused)


def test_an_answer_that_was_not_described_before_a_kill_is_described_later(
    journal: Journal,
) -> None:
    asked = caller(Teller([]), journal)

    async def session() -> Told:
        key = asked.key(request(0))
        await journal.intend(key, "m", "p", "{}", 900, 0.0, "now")
        await journal.keep(key, "yes", 0.1, "now")
        assert journal.spent().tokens == 900
        return await asked.ask(request(0))

    assert asyncio.run(session()).reply.text == "yes"
    assert journal.spent().tokens == 10


def test_a_limit_on_dollars_needs_a_price(journal: Journal) -> None:
    with pytest.raises(UsageError, match=r"price of scripted:teller is unknown.*price_in"):
        caller(Teller([]), journal, Limits(max_cost=1.0))


def sleeps(
    script: Sequence[str | Exception], journal: Journal
) -> tuple[list[Told | BaseException], list[float]]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    asked = caller(Teller(script), journal, Limits(concurrency=1), sleep=sleep)
    return asyncio.run(outcomes(asked, range(1))), slept


def test_the_pause_that_the_endpoint_asks_for_is_kept(journal: Journal) -> None:
    (found,), slept = sleeps([Busy("429", retry_after=7.0), Busy("429"), "yes"], journal)
    assert isinstance(found, Told)
    assert 7 <= slept[0] <= 8
    assert slept[1] <= 2


def test_an_endpoint_that_cannot_be_reached_is_told_within_seconds(journal: Journal) -> None:
    (found,), slept = sleeps([Unreachable("refused")] * FIRST_ATTEMPTS, journal)
    assert isinstance(found, ModelFailed)
    assert "check the network and --base-url" in str(found)
    assert sum(slept) <= 3


def test_a_busy_endpoint_is_given_more_time_even_at_first(journal: Journal) -> None:
    (found,), slept = sleeps([Busy("loading")] * (ATTEMPTS - 1) + ["yes"], journal)
    assert isinstance(found, Told)
    assert len(slept) == ATTEMPTS - 1


class Moody(Teller):
    """Cannot be asked about 0; the others are answered, or lost with it once `down`."""

    down = False

    async def send(self, request: Request) -> str:
        await asyncio.sleep(0.01)
        if self.down or "Why 0?" in request.messages[0].content:
            raise Busy("status 500")
        return "yes"


def test_one_request_that_always_fails_is_given_up_alone(journal: Journal) -> None:
    asked = caller(Moody([]), journal, Limits(concurrency=2))
    found = asyncio.run(outcomes(asked, range(20)))
    assert isinstance(found[0], Refused)
    assert found[0].reason is Reason.GAVE_UP
    assert answers(found) == 19


def test_an_endpoint_that_went_down_rejects_nothing_and_stops_the_run(journal: Journal) -> None:
    model = Moody([])
    asked = caller(model, journal, Limits(concurrency=4))
    assert answers(asyncio.run(outcomes(asked, range(1, 5)))) == 4
    model.down = True
    asked = caller(model, journal, Limits(concurrency=4))
    found = asyncio.run(outcomes(asked, range(1, 9)))
    assert [type(told) for told in found] == [Told] * 4 + [ModelFailed] * 4


class Resting(Caller):
    """Says when it sleeps, and sleeps for ever."""

    def __init__(self, model: Teller, journal: Journal, limits: Limits = NO_LIMITS) -> None:
        self.resting = asyncio.Event()
        super().__init__(model, journal, None, limits, "p:1", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.resting.set()
        await asyncio.Event().wait()


def stopped(ask: Callable[[Caller], Coroutine[Any, Any, Any]], asked: Resting) -> SelfchatError:
    """How a call ends that is stopped while it waits."""

    async def session() -> None:
        call = asyncio.ensure_future(ask(asked))
        await asked.resting.wait()
        asked.stop()
        await asyncio.wait_for(call, 5)

    with pytest.raises(SelfchatError) as found:
        asyncio.run(session())
    return found.value


def test_stop_ends_a_pause_between_attempts(journal: Journal) -> None:
    model = Teller([Busy("429", retry_after=3600.0)])
    asked = Resting(model, journal)
    assert isinstance(stopped(lambda caller: caller.ask(request(1)), asked), Interrupted)
    assert model.sent == 1


def test_stop_ends_waiting_for_ones_turn(journal: Journal) -> None:
    model = Teller(["yes", "yes"])
    asked = Resting(model, journal, Limits(requests_per_minute=1))

    async def two(caller: Caller) -> None:
        for number in (1, 2):
            await caller.ask(request(number))

    assert isinstance(stopped(two, asked), Interrupted)
    assert model.sent == 1


def test_stop_lets_a_call_under_way_come_back(journal: Journal) -> None:
    class Slow(Teller):
        async def send(self, request: Request) -> str:
            under_way.set()
            await asyncio.sleep(0.02)
            return await super().send(request)

    under_way = asyncio.Event()

    async def session() -> None:
        asked = caller(Slow(["yes"]), journal)
        call = asyncio.ensure_future(asked.ask(request(1)))
        await under_way.wait()
        asked.stop()
        assert (await call).reply.text == "yes"

    asyncio.run(session())
    assert journal.spent().answered == 1


def test_no_more_calls_than_allowed_are_under_way(journal: Journal) -> None:
    under_way, most = 0, 0

    class Counting(Teller):
        async def send(self, request: Request) -> str:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.1)
            under_way -= 1
            return await super().send(request)

    asked = caller(Counting(["yes"] * 10), journal, Limits(concurrency=4))
    assert answers(asyncio.run(outcomes(asked, range(10)))) == 10
    assert most == 4


def test_a_passing_fault_of_the_endpoint_is_overcome(journal: Journal) -> None:
    faults = [failure(429, {"Retry-After": "0"}), failure(500), failure(503)]

    def answer(body: dict[str, Any], number: int) -> Any:
        return faults[number - 1] if number <= len(faults) else reply("Because.")

    async def session(url: str) -> Told:
        model = RemoteModel("m", url)
        try:
            return await caller(model, journal).ask(request(1))
        finally:
            await model.close()

    with Endpoint(answer) as endpoint:
        assert asyncio.run(session(endpoint.url)).reply.text == "Because."
        assert len(endpoint.ledger) == 4
    assert journal.spent().ambiguous == 0
