"""What of a conversation the model gets to see: the newest turns that fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from selfchat.core.errors import UsageError
from selfchat.core.records import Message


def fit(
    messages: Sequence[Message], count_tokens: Callable[[Sequence[Message]], int], room: int
) -> list[Message]:
    """Drop as few of the oldest whole turns as make the prompt fit into `room` tokens.

    A leading system message and the last user message are never dropped.

    Args:
        messages: an optional system message, then user and assistant in turn, the user last.

    Raises:
        UsageError: the last message does not fit even by itself.
    """
    lead = 1 if messages[0].role == "system" else 0
    system, spoken = messages[:lead], messages[lead:]
    turns = (len(spoken) + 1) // 2

    def without(dropped: int) -> list[Message]:
        return [*system, *spoken[2 * dropped :]]

    def fits(dropped: int) -> bool:
        return count_tokens(without(dropped)) <= room

    # Each count renders the whole prompt, so try the usual case, then halve: long histories of
    # short messages would otherwise cost a count per turn.
    if fits(0):
        return without(0)
    dropped = bisect_left(range(turns), True, key=fits)
    if dropped == turns:
        needed = count_tokens(without(turns - 1))
        raise UsageError(f"your message is too long: {needed} tokens, {room} fit")
    return without(dropped)
