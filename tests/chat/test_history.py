from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfchat.chat.history import fit
from selfchat.core.errors import UsageError
from selfchat.core.records import Message


def words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def talk(*lengths: int, system: int = 0) -> list[Message]:
    """A conversation of messages of so many words."""
    lead = [Message(role="system", content="s " * system)] if system else []
    return lead + [
        Message(role="assistant" if place % 2 else "user", content=f"{place} " * length)
        for place, length in enumerate(lengths)
    ]


def test_what_fits_is_left_whole() -> None:
    assert fit(talk(1, 2, 3), words, 6) == talk(1, 2, 3)


def test_the_oldest_turn_goes_first() -> None:
    messages = talk(1, 2, 3, 4, 5)
    assert fit(messages, words, 14) == messages[2:]
    assert fit(messages, words, 11) == messages[4:]


def test_the_system_message_stays() -> None:
    messages = talk(5, 5, 5, system=2)
    assert fit(messages, words, 7) == [messages[0], messages[3]]


def test_a_message_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="your message is too long: 9 tokens, 8 fit"):
        fit(talk(1, 1, 9), words, 8)


def test_a_long_history_costs_few_counts() -> None:
    counts = 0

    def counting(messages: Sequence[Message]) -> int:
        nonlocal counts
        counts += 1
        return words(messages)

    fit(talk(*[1] * 1001), counting, 100)
    assert counts < 15


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12),
    last=st.integers(1, 9),
    system=st.integers(0, 5),
    room=st.integers(0, 150),
)
def test_what_is_kept_is_the_longest_tail_of_whole_turns_that_fits(
    turns: list[tuple[int, int]], last: int, system: int, room: int
) -> None:
    messages = talk(*[length for turn in turns for length in turn], last, system=system)
    lead = 1 if system else 0
    tails = [messages[:lead] + messages[lead + 2 * dropped :] for dropped in range(len(turns) + 1)]
    fitting = [tail for tail in tails if words(tail) <= room]
    if fitting:
        assert fit(messages, words, room) == fitting[0]
    else:
        with pytest.raises(UsageError):
            fit(messages, words, room)
