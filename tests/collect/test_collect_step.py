"""A collection goes on where it was, pays for nothing twice and keeps its secrets."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from command import Child, finish, kill, one_line, start, wait_until
from endpoint import KEY, Endpoint, failure, reply, slowly, talk

from selfchat.collect.options import CollectOptions
from selfchat.collect.step import Collected, collect
from selfchat.core.errors import UsageError
from selfchat.core.files import read_records
from selfchat.core.progress import Quiet
from selfchat.core.records import Dialogue, Provenance, Rejection

FILES = ("dialogues.jsonl", "provenance.jsonl", "rejections.jsonl")
Write = Callable[..., Path]


def gather(endpoint: Endpoint, seeds: Path, run: Path, **options: Any) -> Collected:
    values = {"teacher": "openai:m", "base_url": endpoint.url, **options}
    return collect(CollectOptions.parse(values, "the test"), seeds, run, Quiet())


def started(endpoint: Endpoint, seeds: Path, run: Path, *more: object, **options: Any) -> Child:
    common = ("--seeds", seeds, "--out", run, "--teacher", "openai:m")
    return start("collect", *common, "--base-url", endpoint.url, *more, **options)


def topics(count: int) -> list[str]:
    return [f"topic {number}" for number in range(count)]


def rejected(run: Path) -> Counter[str]:
    return Counter(str(row.reason) for row in read_records(run / "rejections.jsonl", Rejection))


@pytest.mark.parametrize("strategy", ["transcript", "turns"])
def test_equal_inputs_give_equal_bytes_in_seed_order(
    strategy: str, endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    seeds = write_seeds(*topics(12))
    for name, concurrency in (("one", 1), ("two", 12)):
        gather(endpoint, seeds, tmp_path / name, strategy=strategy, concurrency=concurrency)
    found = [(tmp_path / name / "dialogues.jsonl").read_bytes() for name in ("one", "two")]
    assert found[0] == found[1] != b""
    in_order = [json.loads(line)["id"] for line in seeds.read_text().splitlines()]
    dialogues = read_records(tmp_path / "one" / "dialogues.jsonl", Dialogue)
    assert [dialogue.seed_id for dialogue in dialogues] == in_order


def test_provenance_says_where_each_dialogue_came_from(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    figures = gather(endpoint, write_seeds("a", "b"), tmp_path, price_in=1.0, price_out=2.0)
    dialogues = list(read_records(tmp_path / "dialogues.jsonl", Dialogue))
    provenances = list(read_records(tmp_path / "provenance.jsonl", Provenance))
    assert [row.id for row in provenances] == [row.id for row in dialogues]
    first = provenances[0]
    assert (first.model, first.model_returned, first.request_ids) == (
        "openai:m",
        "teacher-0613",
        ("chatcmpl-1",),
    )
    assert first.usage.prompt_tokens == 30
    assert first.price == pytest.approx((30 + 2 * first.usage.completion_tokens) / 1e6)
    assert figures.tokens == endpoint.billed()
    assert (figures.seeds, figures.dialogues, figures.turns, figures.calls) == (2, 2, 4, 2)


def test_added_seeds_pay_for_themselves_only(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    gather(endpoint, write_seeds(*topics(5)), tmp_path)
    gather(endpoint, write_seeds("first of all", *topics(5), "last"), tmp_path)
    assert len(endpoint.ledger) == 7
    new = [asked.text for asked in endpoint.ledger[5:]]
    assert ["first of all" in new[0], "last" in new[1]] == [True, True]


def test_a_seed_that_stands_twice_is_paid_for_once(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    gather(endpoint, write_seeds(*topics(3), *topics(3)), tmp_path)
    assert len(endpoint.ledger) == 3
    assert len((tmp_path / "dialogues.jsonl").read_text().splitlines()) == 3


def test_a_teacher_at_another_address_is_not_asked_again(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    seeds = write_seeds(*topics(3))
    gather(endpoint, seeds, tmp_path)
    before = (tmp_path / "dialogues.jsonl").read_bytes()
    with Endpoint() as other:
        gather(other, seeds, tmp_path)
    assert other.ledger == []
    assert (tmp_path / "dialogues.jsonl").read_bytes() == before


def test_an_empty_file_of_seeds_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").touch()
    with pytest.raises(UsageError, match=r"seeds\.jsonl: no seeds in it"):
        gather(endpoint, tmp_path / "seeds.jsonl", tmp_path / "run")


USELESS: dict[str, Callable[[], web.StreamResponse]] = {
    "bad_answer 1": lambda: web.Response(text="<html>POISON</html>", content_type="text/html"),
    "bad_answer 2": lambda: web.Response(text='{"choices": [{"message": {"content": "POISON'),
    "bad_answer 3": lambda: reply(None),
    "bad_answer 4": lambda: reply(""),
    "content_filter": lambda: reply("[Human] POISON?\n[AI] POISON.", "content_filter"),
    "context_full": lambda: failure(400, code="context_length_exceeded", message="POISON"),
    "unparsable": lambda: reply("POISON"),
}


def test_nothing_of_a_useless_answer_becomes_content(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any], number: int) -> web.StreamResponse:
        text = body["messages"][0]["content"]
        faults = [fault for name, fault in USELESS.items() if f"‘{name}’" in text]
        return faults[0]() if faults else talk(body)

    endpoint.answer = answer
    figures = gather(endpoint, write_seeds("good 1", *USELESS, "good 2"), tmp_path)
    assert rejected(tmp_path) == Counter(name.split()[0] for name in USELESS)
    assert figures.rejected == dict(sorted(rejected(tmp_path).items()))
    assert figures.dialogues == 2
    assert "POISON" not in (tmp_path / "dialogues.jsonl").read_text()
    again = gather(endpoint, tmp_path / "seeds.jsonl", tmp_path)
    assert again.rejected == figures.rejected
    asked_twice = Counter(asked.identity for asked in endpoint.ledger).most_common(2)
    assert [count for _, count in asked_twice] == [2, 1], "only what gave no answer at all"


def test_the_key_is_in_no_file_and_no_output(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any], number: int) -> web.StreamResponse:
        said = f"Bearer {KEY}"
        return talk(body) if number <= 2 else failure(400, message=said, code="content_filter")

    endpoint.answer = answer
    env = {"OPENAI_API_KEY": KEY}
    seeds, run = write_seeds(*topics(4)), tmp_path / "run"
    code, out, error = finish(started(endpoint, seeds, run, env=env))
    assert code == 0, error
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in endpoint.ledger)
    endpoint.answer = lambda body, number: failure(401, message=f"no such key: {KEY}")
    write_seeds(*topics(5))
    code, more_out, more_error = finish(started(endpoint, seeds, run, "--json", env=env))
    assert code == 1
    assert "refuses the API key (401): no such key: ***" in one_line(more_error)
    written = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert KEY.encode() not in written
    assert KEY not in out + error + more_out + more_error


def asked_since(endpoint: Endpoint, count: int) -> set[str]:
    return {asked.text for asked in endpoint.ledger[count:]}


def journalled(run: Path) -> set[str]:
    """The last messages of the requests whose answer is in the journal."""
    connection = sqlite3.connect(run / "journal.sqlite")
    rows = connection.execute("SELECT request FROM calls WHERE raw IS NOT NULL").fetchall()
    connection.close()
    return {json.loads(row[0])["messages"][-1][1] for row in rows}


def test_kill_9_at_any_moment_loses_and_repeats_nothing(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    concurrency, kills, seeds = 4, 4, write_seeds(*topics(60))
    gather(endpoint, seeds, tmp_path / "undisturbed", concurrency=16)
    endpoint.ledger.clear()
    draws = random.Random(2023)
    endpoint.answer = lambda body, number: slowly(body, draws.uniform(0, 0.03))
    run = tmp_path / "killed"
    flags = ("--concurrency", concurrency, "--quiet")
    paid: set[str] = set()
    for _ in range(kills):
        seen = len(endpoint.ledger)
        child = started(endpoint, seeds, run, *flags)
        goal = seen + draws.randint(1, 12)
        wait_until(lambda goal=goal: len(endpoint.ledger) >= goal, child)  # type: ignore[misc]
        time.sleep(draws.uniform(0, 0.03))
        kill(child)
        assert not paid & asked_since(endpoint, seen)
        paid = journalled(run)
    seen = len(endpoint.ledger)
    code, _, error = finish(started(endpoint, seeds, run, *flags))
    assert code == 0, error
    assert not paid & asked_since(endpoint, seen)
    asked = Counter(asked.text for asked in endpoint.ledger)
    assert len(asked) == 60
    assert asked.total() - 60 <= concurrency * kills
    expected = (tmp_path / "undisturbed" / "dialogues.jsonl").read_bytes()
    assert (run / "dialogues.jsonl").read_bytes() == expected


def test_ctrl_c_keeps_what_was_collected_and_can_go_on(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    endpoint.answer = lambda body, number: slowly(body, 0.05)
    seeds = write_seeds(*topics(60))
    child = started(endpoint, seeds, tmp_path / "run", "--concurrency", 3)
    wait_until(lambda: len(endpoint.ledger) > 6, child)
    child.send_signal(signal.SIGINT)
    code, out, error = finish(child, seconds=5)
    assert (code, out) == (130, "")
    assert "run the same command again to go on" in one_line(error)
    kept = (tmp_path / "run" / "dialogues.jsonl").read_text().count("\n")
    assert kept == len(endpoint.ledger) < 60, "calls under way are kept, and no other is made"
    assert finish(started(endpoint, seeds, tmp_path / "run"))[0] == 0
    assert len(endpoint.ledger) == 60


def test_ctrl_c_ends_a_long_pause(endpoint: Endpoint, write_seeds: Write, tmp_path: Path) -> None:
    endpoint.answer = lambda body, number: failure(429, {"Retry-After": "3600"}, message="later")
    child = started(endpoint, write_seeds("a"), tmp_path / "run")
    wait_until(lambda: endpoint.ledger, child)
    child.send_signal(signal.SIGINT)
    assert finish(child, seconds=5)[0] == 130


def test_a_second_run_on_the_directory_is_refused_with_the_pid_of_the_first(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    endpoint.answer = lambda body, number: slowly(body, 0.3)
    seeds, run = write_seeds(*topics(100)), tmp_path / "run"
    first = started(endpoint, seeds, run, "--concurrency", 1)
    wait_until(lambda: endpoint.ledger, first)
    code, _, error = finish(started(endpoint, seeds, run))
    assert code == 1
    assert f"in use by process {first.pid}" in one_line(error)
    kill(first)
    seeds = write_seeds("another")
    assert finish(started(endpoint, seeds, run))[0] == 0, "a dead process holds no lock"


def test_a_budget_stops_with_its_exit_code_and_raised_goes_on(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    seeds, run = write_seeds(*topics(8)), tmp_path / "run"
    small = ("--max-tokens", 1500)
    code, out, error = finish(started(endpoint, seeds, run, *small, "--json"))
    assert (code, out) == (3, "")
    assert "--max-tokens 1500" in one_line(error)
    assert 0 < len(endpoint.ledger) < 8
    assert endpoint.billed() <= 1500
    code, out, _ = finish(started(endpoint, seeds, run, "--max-tokens", 100_000, "--json"))
    assert code == 0
    assert json.loads(out)["dialogues"] == 8
    assert len(endpoint.ledger) == 8


def test_a_limit_on_dollars_without_a_price_is_wrong_usage(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    code, _, error = finish(
        started(endpoint, write_seeds("a"), tmp_path / "run", "--max-cost", "0.5")
    )
    assert code == 2
    assert "collect.price_in" in one_line(error)
    assert endpoint.ledger == []


def test_a_full_disk_is_told_in_one_line_and_spares_what_was_there(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    endpoint.answer = lambda body, number: reply(f"[Human] Why?\n[AI] {number} {'word ' * 800}\n")
    run = tmp_path / "run"
    assert finish(started(endpoint, write_seeds(*topics(20)), run))[0] == 0
    before = [(run / name).read_bytes() for name in FILES]
    assert len(before[0]) > 60_000
    code, _, error = finish(started(endpoint, write_seeds(*topics(19)), run, file_limit=60_000))
    assert code == 1
    assert "too large; what was finished is kept" in one_line(error)
    assert [(run / name).read_bytes() for name in FILES] == before
    assert list(run.glob(".*.part")) == []
    assert finish(started(endpoint, write_seeds(*topics(19)), run))[0] == 0
    assert (run / "dialogues.jsonl").read_bytes() == b"".join(before[0].splitlines(True)[:19])


def test_a_journal_that_cannot_grow_stops_the_run_and_keeps_what_it_has(
    endpoint: Endpoint, write_seeds: Write, tmp_path: Path
) -> None:
    seeds, run = write_seeds(*topics(40)), tmp_path / "run"
    flags = ("--concurrency", 1)
    code, _, error = finish(started(endpoint, seeds, run, *flags, file_limit=100_000))
    assert code == 1
    assert "cannot write the journal" in one_line(error)
    asked = len(endpoint.ledger)
    assert 2 < asked < 40
    assert finish(started(endpoint, seeds, run))[0] == 0
    assert len(endpoint.ledger) <= 40 + 1, "at most the answer that could not be written"
