"""A transcript in one call, or turn by turn: what is asked, kept, drawn again and rejected."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from selfchat.calls.caller import Caller, Limits
from selfchat.calls.journal import Journal
from selfchat.collect.options import CollectOptions
from selfchat.collect.strategies import Conversed, converse, prompt_version
from selfchat.core.records import Reason, Seed
from selfchat.models.base import Refused, Reply, Request

TWO_TURNS = "[Human] Why is it blue?\n[AI] Light scatters.\n[Human] And red?\n[AI] Less so.\n"


class Teacher:
    """Says the next of its lines; a line that ends in `…` was cut, and an exception is raised."""

    address, provider = "scripted:teacher", "scripted"

    def __init__(self, lines: Sequence[str | Refused], speaks_as_user: bool) -> None:
        self.lines = list(lines)
        self.speaks_as_user = speaks_as_user
        self.asked: list[Request] = []

    async def send(self, request: Request) -> str:
        self.asked.append(request)
        line = self.lines.pop(0)
        if isinstance(line, Refused):
            raise line
        return line

    def read(self, raw: str) -> Reply:
        return Reply(raw.removesuffix("…"), "length" if raw.endswith("…") else "stop", None)

    async def close(self) -> None: ...


Talk = Callable[..., tuple[Conversed, list[Request]]]


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    def about_the_sea(
        *lines: str | Refused, speaks_as_user: bool = True, **options: Any
    ) -> tuple[Conversed, list[Request]]:
        teacher = Teacher(lines, speaks_as_user)
        journal = Journal(tmp_path / "journal.sqlite")
        chosen = CollectOptions.parse(options, "the test")
        caller = Caller(teacher, journal, None, Limits(), prompt_version(chosen))
        try:
            conversed = asyncio.run(converse(Seed.make("the sea", "test"), caller, chosen))
        finally:
            journal.close()
        assert not teacher.lines, "it was asked less than expected"
        return conversed, teacher.asked

    return about_the_sea


def said(conversed: Conversed) -> list[str]:
    return [message.content for message in conversed.messages]


def turns(talk: Talk, *lines: str | Refused, **more: Any) -> tuple[Conversed, list[Request]]:
    return talk(*lines, **{"strategy": "turns", "max_turns": 2, **more})


def test_a_transcript_is_one_call_with_the_papers_template(talk: Talk) -> None:
    conversed, (asked,) = talk(TWO_TURNS, transcript_tokens=700, temperature=0.5)
    template = resources.files("selfchat.template.prompts").joinpath("self_chat.txt").read_text()
    assert asked.messages[0].content == template.replace("${SEED}", "the sea")
    assert (asked.speaker, asked.sampling.max_tokens, asked.sampling.temperature) == (
        "assistant",
        700,
        0.5,
    )
    assert said(conversed) == ["Why is it blue?", "Light scatters.", "And red?", "Less so."]
    assert len(conversed.told) == 1


def test_the_prompt_version_is_the_hash_of_its_text() -> None:
    def pinned(name: str) -> str:
        file = resources.files("selfchat.template.prompts").joinpath(f"{name}.txt")
        text = file.read_text("utf-8").removesuffix("\n")
        return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    assert prompt_version(CollectOptions()) == pinned("self_chat")
    by_turns = CollectOptions(strategy="turns")
    assert prompt_version(by_turns) == f"{pinned('turns_reply')}+{pinned('turns_user')}"


def test_a_repeated_opening_of_the_template_is_left_out(talk: Talk) -> None:
    conversed, _ = talk(f"[Human] Hello!\n[AI] Hi! How can I help you?\n{TWO_TURNS}")
    assert said(conversed)[0] == "Why is it blue?"


def test_a_cut_transcript_loses_its_last_turn(talk: Talk) -> None:
    conversed, _ = talk(f"{TWO_TURNS.rstrip()}…")
    assert said(conversed) == ["Why is it blue?", "Light scatters."]


@pytest.mark.parametrize(
    ("transcript", "reason"),
    [
        ("I would rather not.", Reason.UNPARSABLE),
        ("[Human] Hello!\n[AI] Hi! How can I help you?\n", Reason.TOO_FEW_TURNS),
        ("[Human] Why?\n[AI] So.\n[Human] But why?\n[AI] so. \n", Reason.REPEATED_TURN),
        (Refused(Reason.CONTENT_FILTER, "no"), Reason.CONTENT_FILTER),
    ],
)
def test_a_transcript_of_no_use_is_rejected_with_its_reason(
    transcript: str | Refused, reason: Reason, talk: Talk
) -> None:
    conversed, _ = talk(transcript)
    assert (conversed.messages, conversed.reason) == ((), reason)


def test_by_turns_the_model_speaks_as_both_from_the_same_beginning(talk: Talk) -> None:
    conversed, asked = turns(talk, "It is blue.", "Why?", "Light.", user_tokens=33)
    assert said(conversed) == ["the sea", "It is blue.", "Why?", "Light."]
    assert [request.speaker for request in asked] == ["assistant", "user", "assistant"]
    assert [request.sampling.max_tokens for request in asked] == [512, 33, 512]
    assert asked[0].messages == asked[1].messages[:2] == asked[2].messages[:2]
    assert len({request.rng_seed for request in asked}) == 3


def test_a_chat_only_endpoint_is_asked_for_the_humans_next_line(talk: Talk) -> None:
    lines = ("It is blue.", "Why?", "Light.")
    conversed, asked = turns(talk, *lines, speaks_as_user=False)
    assert said(conversed) == ["the sea", "It is blue.", "Why?", "Light."]
    (message,) = asked[1].messages
    assert (message.role, asked[1].speaker) == ("user", "assistant")
    assert "“the sea”" in message.content
    assert message.content.endswith("Human: the sea\n\nAI: It is blue.")
    assert "[END]" in message.content


@pytest.mark.parametrize("line", ["[END]", " [END]\n", "Thank you, that is all. [END]"])
def test_the_human_can_end_it(line: str, talk: Talk) -> None:
    conversed, _ = turns(talk, "It is blue.", line, speaks_as_user=False, max_turns=5)
    assert said(conversed) == ["the sea", "It is blue."]


def test_a_reply_may_speak_of_the_end(talk: Talk) -> None:
    conversed, _ = turns(talk, "[END] closes the block.", max_turns=1)
    assert said(conversed)[1] == "[END] closes the block."


@pytest.mark.parametrize("fault", ["It is bl…", "the SEA", " "])
def test_a_line_of_no_use_is_drawn_again_with_another_seed(fault: str, talk: Talk) -> None:
    conversed, asked = turns(talk, fault, "It is blue.", max_turns=1, retries=1)
    assert said(conversed) == ["the sea", "It is blue."]
    assert asked[0].messages == asked[1].messages
    assert asked[0].rng_seed != asked[1].rng_seed
    assert len(conversed.told) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("It…", Reason.TRUNCATED), ("the SEA", Reason.REPEATED_TURN), (" ", Reason.EMPTY_TURN)],
)
def test_without_a_retry_its_reason_rejects_the_dialogue(
    fault: str, reason: Reason, talk: Talk
) -> None:
    assert turns(talk, fault)[0].reason is reason


def test_a_fault_later_on_keeps_the_whole_turns_before_it(talk: Talk) -> None:
    for fault in ("It is bl…", "It is blue.", Refused(Reason.CONTEXT_FULL, "full")):
        conversed, _ = turns(talk, "It is blue.", "Why, 1?", fault, rng_seed=len(str(fault)))
        assert said(conversed) == ["the sea", "It is blue."]


def test_fewer_turns_than_asked_for_are_rejected_with_the_fault_that_ended_them(
    talk: Talk,
) -> None:
    conversed, _ = turns(talk, "It is blue.", "Why?", "Li…", min_turns=2)
    assert conversed.reason is Reason.TRUNCATED
    ended, _ = turns(talk, "Blue.", "[END]", speaks_as_user=False, min_turns=2, rng_seed=1)
    assert (ended.reason, ended.detail) == (Reason.TOO_FEW_TURNS, "1 whole turns")
