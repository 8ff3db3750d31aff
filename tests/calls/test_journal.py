"""An answer is on disk before anyone reads it, and a finished call is never made again."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfchat.calls.caller import Caller, Limits
from selfchat.calls.journal import Journal
from selfchat.core.errors import SelfchatError
from selfchat.core.records import Message, Sampling, Usage
from selfchat.models.base import Reply, Request
from selfchat.models.remote import RemoteModel

REQUEST = Request((Message(role="user", content="Why?"),), Sampling(max_tokens=50))


class Teller:
    """Answers with its number, and looks at the journal from outside when an answer is read."""

    address, provider, speaks_as_user = "scripted:teller", "scripted", True

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.sent = 0
        self.seen: list[str] = []

    async def send(self, request: Request) -> str:
        self.sent += 1
        return f"answer {self.sent}"

    def read(self, raw: str) -> Reply:
        connection = sqlite3.connect(self.journal)
        self.seen += [row[0] for row in connection.execute("SELECT raw FROM calls")]
        connection.close()
        return Reply(raw, "stop", Usage(prompt_tokens=4, completion_tokens=2))

    async def close(self) -> None: ...


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def ask(model: Teller, journal: Journal) -> str:
    caller = Caller(model, journal, None, Limits(), "p:1")
    return asyncio.run(caller.ask(REQUEST)).reply.text


def test_an_answer_is_on_disk_before_it_is_read(journal: Journal, tmp_path: Path) -> None:
    model = Teller(tmp_path / "journal.sqlite")
    assert ask(model, journal) == "answer 1"
    assert model.seen == ["answer 1"]


def test_a_finished_call_is_never_made_again(tmp_path: Path) -> None:
    model = Teller(tmp_path / "journal.sqlite")
    for _ in range(2):
        journal = Journal(tmp_path / "journal.sqlite")
        assert ask(model, journal) == ask(model, journal) == "answer 1"
        journal.close()
    assert model.sent == 1


DIES_WHEN_READING = """
import asyncio, os, pathlib, signal, sys
from selfchat.calls.caller import Caller, Limits
from selfchat.calls.journal import Journal
from selfchat.core.records import Message, Sampling
from selfchat.models.base import Reply, Request

folder, dies = pathlib.Path(sys.argv[1]), sys.argv[2] == "dies"

class Model:
    address, provider, speaks_as_user = "scripted:x", "scripted", True
    async def send(self, request):
        with (folder / "sent").open("a") as file:
            file.write("one more\\n")
        return "paid for"
    def read(self, raw):
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return Reply(raw, "stop", None)

journal = Journal(folder / "journal.sqlite")
caller = Caller(Model(), journal, None, Limits(), "p:1")
request = Request((Message(role="user", content="Why?"),), Sampling())
print(asyncio.run(caller.ask(request)).reply.text)
journal.close()
"""


def test_a_process_killed_while_reading_an_answer_does_not_ask_again(tmp_path: Path) -> None:
    def child(mode: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", DIES_WHEN_READING, str(tmp_path), mode]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert child("dies").returncode == -signal.SIGKILL
    assert child("lives").stdout == "paid for\n"
    assert (tmp_path / "sent").read_text() == "one more\n"


OTHER_REQUESTS = {
    "content": REQUEST._replace(messages=(Message(role="user", content="How?"),)),
    "role": REQUEST._replace(messages=(Message(role="system", content="Why?"),)),
    "more messages": REQUEST._replace(messages=(*REQUEST.messages, *REQUEST.messages)),
    "temperature": REQUEST._replace(sampling=Sampling(max_tokens=50, temperature=0.5)),
    "top_p": REQUEST._replace(sampling=Sampling(max_tokens=50, top_p=0.5)),
    "max_tokens": REQUEST._replace(sampling=Sampling(max_tokens=51)),
    "rng_seed": REQUEST._replace(rng_seed=1),
    "speaker": REQUEST._replace(speaker="user"),
}


def remote(journal: Journal, name: str = "m", host: str = "one", prompts: str = "p:1") -> Caller:
    model = RemoteModel(name, f"http://{host}/v1")
    return Caller(model, journal, None, Limits(), prompts)


@pytest.mark.parametrize("change", OTHER_REQUESTS)
def test_the_key_covers_the_whole_request(change: str, journal: Journal) -> None:
    caller = remote(journal)
    assert caller.key(OTHER_REQUESTS[change]) != caller.key(REQUEST) == caller.key(REQUEST)


def test_the_key_covers_model_provider_and_prompts_but_not_the_address(journal: Journal) -> None:
    key = remote(journal).key(REQUEST)
    other_provider = remote(journal)
    other_provider.model.provider = "another"
    others = [remote(journal, name="n"), remote(journal, prompts="p:2"), other_provider]
    assert key not in [caller.key(REQUEST) for caller in others]
    assert key == remote(journal, host="two").key(REQUEST)


async def intend(journal: Journal, key: str) -> None:
    await journal.intend(key, "m", "p", "{}", 100, 0.5, "now")


def test_what_was_spent_counts_lost_attempts_at_their_most(journal: Journal) -> None:
    async def calls() -> None:
        for key in ("withdrawn", "killed", "silent", "answered"):
            await intend(journal, key)
        await journal.withdraw("withdrawn")
        for key in ("silent", "answered"):
            await journal.keep(key, "raw", 0.1, "then")
        await journal.describe("answered", "m", "1", Usage(prompt_tokens=7), 0.25)

    asyncio.run(calls())
    assert journal.spent() == (100 + 100 + 7, 0.5 + 0.5 + 0.25, 2, 1)


def test_an_answer_to_a_second_attempt_does_not_pay_for_a_lost_first_one(journal: Journal) -> None:
    async def calls() -> None:
        await intend(journal, "k")
        await intend(journal, "k")
        await journal.keep("k", "raw", 0.1, "then")
        await journal.describe("k", "m", "1", Usage(prompt_tokens=7), 0.25)

    asyncio.run(calls())
    assert journal.spent() == (107, 0.75, 1, 1)


def test_a_write_that_fails_is_told_and_the_next_one_works(journal: Journal) -> None:
    async def calls() -> None:
        await intend(journal, "k")
        with pytest.raises(SelfchatError, match="cannot write the journal"):
            await journal.keep("k", "\ud800", 0.1, "then")
        await journal.keep("k", "raw", 0.1, "then")

    asyncio.run(asyncio.wait_for(calls(), 10))
    answer = journal.answer("k")
    assert answer is not None
    assert answer.raw == "raw"


def test_a_file_that_is_no_journal_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_text(
        "no database, but long enough to be taken for one\n" * 99
    )
    with pytest.raises(SelfchatError, match=r"journal\.sqlite: file is not a database"):
        Journal(tmp_path / "journal.sqlite")


def test_many_writes_at_once_are_all_on_disk_when_told(journal: Journal, tmp_path: Path) -> None:
    async def calls() -> None:
        await asyncio.gather(*(intend(journal, f"k{number}") for number in range(500)))

    asyncio.run(calls())
    connection = sqlite3.connect(os.fspath(tmp_path / "journal.sqlite"))
    assert connection.execute("SELECT count(*) FROM calls").fetchone() == (500,)
    connection.close()
