"""The two ways to have a teacher talk with itself: a transcript in one call, or turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from selfchat.calls.caller import Caller, Told
from selfchat.collect.options import CollectOptions
from selfchat.core.records import Message, Reason, Sampling, Seed, stable_id
from selfchat.models.base import Refused, Request
from selfchat.template.prompts import fill, prompt, prompt_hash
from selfchat.template.transcript import Unreadable, parse_transcript

_OPENING = ("Hello!", "Hi! How can I help you?")  # the template's own first turn, if repeated
_END = "[END]"


class Conversed(NamedTuple):
    """What a teacher made of a seed: whole turns, or the reason for none, and the calls it took."""

    messages: tuple[Message, ...]
    reason: Reason | None
    detail: str
    told: tuple[Told, ...]


def prompt_version(options: CollectOptions) -> str:
    """Names the prompts of a strategy and pins their text."""
    names = ("self_chat",) if options.strategy == "transcript" else ("turns_reply", "turns_user")
    return "+".join(f"{name}:{prompt_hash(name)}" for name in names)


async def converse(seed: Seed, caller: Caller, options: CollectOptions) -> Conversed:
    """Have the teacher talk with itself about a seed."""
    if options.strategy == "transcript":
        return await _transcript(seed, caller, options)
    return await _Turns(seed, caller, options).run()


async def _transcript(seed: Seed, caller: Caller, options: CollectOptions) -> Conversed:
    asked = Message(role="user", content=fill(prompt("self_chat"), SEED=seed.text) + "\n")
    sampling = _sampling(options, options.longest_answer)
    told: tuple[Told, ...] = ()
    try:
        answer = await caller.ask(Request((asked,), sampling, _draw_seed(options, seed, 0)))
        told = (answer,)
        messages = parse_transcript(answer.reply.text, cut=answer.reply.finish == "length")
    except (Refused, Unreadable) as fault:
        return Conversed((), fault.reason, fault.detail, told)
    if tuple(message.content for message in messages[:2]) == _OPENING:
        messages = messages[2:]
    return _judged(messages, told, options, Reason.TOO_FEW_TURNS, "")


class _Turns:
    """One dialogue, turn by turn: the seed is the user's first message."""

    def __init__(self, seed: Seed, caller: Caller, options: CollectOptions) -> None:
        self._seed, self._caller, self._options = seed, caller, options
        self._messages = [Message(role="user", content=seed.text)]
        self._told: list[Told] = []
        self._fault = (Reason.TOO_FEW_TURNS, "")

    async def run(self) -> Conversed:
        for turn in range(self._options.max_turns):
            if turn and not await self._user_speaks():
                break
            if not await self._assistant_speaks():
                break
        whole = self._messages[: len(self._messages) // 2 * 2]
        return _judged(whole, tuple(self._told), self._options, *self._fault)

    async def _assistant_speaks(self) -> bool:
        sampling = _sampling(self._options, self._options.longest_answer)
        request = Request(self._so_far(), sampling)
        return await self._say(request, Message(role="assistant", content="-"))

    async def _user_speaks(self) -> bool:
        sampling = _sampling(self._options, self._options.user_tokens)
        line = Message(role="user", content="-")
        if self._caller.model.speaks_as_user:
            return await self._say(Request(self._so_far(), sampling, speaker="user"), line)
        transcript = "\n\n".join(f"{_WHO[said.role]}: {said.content}" for said in self._messages)
        text = fill(prompt("turns_user"), SEED=self._seed.text, END=_END, TRANSCRIPT=transcript)
        return await self._say(Request((Message(role="user", content=text),), sampling), line)

    def _so_far(self) -> tuple[Message, ...]:
        """The same beginning for both speakers, so that a local engine computes it once."""
        return (Message(role="system", content=prompt("turns_reply")), *self._messages)

    async def _say(self, request: Request, line: Message) -> bool:
        """Add what is said next; False when the conversation is over, or this cannot be used."""
        for attempt in range(self._options.retries + 1):
            drawn = _draw_seed(self._options, self._seed, len(self._messages), attempt)
            try:
                told = await self._caller.ask(request._replace(rng_seed=drawn))
            except Refused as refused:
                self._fault = (refused.reason, refused.detail)
                return False
            self._told.append(told)
            text = told.reply.text.strip()
            if line.role == "user" and _END in text:
                return False
            fault = _line_fault(text, told.reply.finish == "length", self._messages)
            if fault is None:
                self._messages.append(line.model_copy(update={"content": text}))
                return True
            self._fault = fault
        return False


_WHO = {"user": "Human", "assistant": "AI", "system": "System"}


def _line_fault(text: str, cut: bool, before: Sequence[Message]) -> tuple[Reason, str] | None:
    if not text:
        return Reason.EMPTY_TURN, "nothing was said"
    if cut:
        return Reason.TRUNCATED, "cut by the length cap"
    if any(_same(text, message.content) for message in before):
        return Reason.REPEATED_TURN, "said before"
    return None


def _judged(
    messages: Sequence[Message],
    told: tuple[Told, ...],
    options: CollectOptions,
    reason: Reason,
    detail: str,
) -> Conversed:
    """Accept a conversation of enough turns in which no reply is repeated."""
    if len(messages) // 2 < options.min_turns:
        return Conversed((), reason, detail or f"{len(messages) // 2} whole turns", told)
    replies = [message.content for message in messages if message.role == "assistant"]
    for index, reply in enumerate(replies):
        if any(_same(reply, earlier) for earlier in replies[:index]):
            return Conversed((), Reason.REPEATED_TURN, f"reply {index + 1} was given before", told)
    return Conversed(tuple(messages), None, "", told)


def _same(text: str, other: str) -> bool:
    """Whether two texts say the same but for case and white space."""
    return text.casefold().split() == other.casefold().split()


def _sampling(options: CollectOptions, max_tokens: int) -> Sampling:
    return Sampling(temperature=options.temperature, top_p=options.top_p, max_tokens=max_tokens)


def _draw_seed(options: CollectOptions, seed: Seed, place: int, attempt: int = 0) -> int:
    """The seed of one call's draws: 31 bits, from the recipe's seed and the call's place."""
    return int(stable_id(options.rng_seed, seed.id, place, attempt), 16) % (1 << 31)
