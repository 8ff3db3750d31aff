"""Requests and tokens a minute, and the pauses between attempts."""

from __future__ import annotations

import asyncio
import random

import pytest

from selfchat.calls.pacing import Bucket, pause


def waits(per_minute: int | None, amounts: list[float]) -> list[float]:
    """How long each of many who come at once has to wait."""
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def take() -> None:
        bucket = Bucket(per_minute, sleep)
        for amount in amounts:
            await bucket.take(amount)

    asyncio.run(take())
    return slept


def test_requests_are_spread_over_the_minute() -> None:
    assert waits(60, [1, 1, 1, 1]) == pytest.approx([1, 2, 3], abs=0.1)


def test_a_dear_request_makes_the_next_one_wait_for_all_its_tokens() -> None:
    assert waits(600, [100, 5, 5]) == pytest.approx([10, 10.5], abs=0.1)


def test_no_limit_never_waits() -> None:
    assert waits(None, [1e9, 1e9]) == []


@pytest.mark.parametrize("attempt", [1, 3, 20])
def test_a_pause_is_never_shorter_than_asked_for(attempt: int) -> None:
    jitter = random.Random(0)
    assert all(7 <= pause(attempt, 7, jitter) <= 8 for _ in range(100))


def test_pauses_grow_and_are_spread_from_zero_to_a_minute() -> None:
    jitter = random.Random(0)
    for attempt, longest in ((1, 1), (2, 2), (5, 16), (30, 60)):
        drawn = [pause(attempt, None, jitter) for _ in range(400)]
        assert 0 <= min(drawn) < longest * 0.1
        assert longest * 0.9 < max(drawn) <= longest
