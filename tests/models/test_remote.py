"""What an OpenAI-compatible endpoint may answer, and what each answer means."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import KEY, Answer, Endpoint, failure, reply

from selfchat.core.errors import UsageError
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

REQUEST = Request(
    (Message(role="system", content="Be brief."), Message(role="user", content="Why?")),
    Sampling(temperature=0.7, top_p=0.9, max_tokens=50),
    rng_seed=11,
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def send(url: str, timeout: float = 5.0) -> str:
    async def session() -> str:
        model = RemoteModel("gpt-x", url, timeout=timeout)
        try:
            return await model.send(REQUEST)
        finally:
            await model.close()

    return asyncio.run(session())


def ask(answer: Answer, timeout: float = 5.0) -> Reply:
    """Send to an endpoint that gives this answer, and read what came."""
    with Endpoint(answer) as endpoint:
        return RemoteModel("gpt-x", endpoint.url).read(send(endpoint.url, timeout))


def test_a_request_is_a_chat_completion_with_the_key_in_its_header_only() -> None:
    with Endpoint(lambda body, number: reply("Because.")) as endpoint:
        send(endpoint.url + "/")
    (asked,) = endpoint.ledger
    assert asked.body == {
        "model": "gpt-x",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
        ],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 50,
        "seed": 11,
    }
    assert asked.headers["Authorization"] == f"Bearer {KEY}"


def test_a_good_answer_is_read_whole() -> None:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    found = ask(lambda body, number: reply("Because.", "length", usage=usage))
    used = Usage(prompt_tokens=12, completion_tokens=3, cached_tokens=8)
    assert found == Reply("Because.", "length", used, "teacher-0613", "chatcmpl-1")


REFUSED_ANSWERS: dict[str, tuple[web.Response | Any, Reason]] = {
    "HTML": (lambda: web.Response(text="<html>Sign in</html>"), Reason.BAD_ANSWER),
    "nothing": (lambda: web.Response(text=""), Reason.BAD_ANSWER),
    "JSON cut short": (lambda: web.Response(text='{"choices": [{"mess'), Reason.BAD_ANSWER),
    "JSON without end": (lambda: web.Response(text="[" * 200_000), Reason.BAD_ANSWER),
    "another shape": (lambda: web.json_response([1, 2]), Reason.BAD_ANSWER),
    "no choice": (lambda: reply("", choices=[]), Reason.BAD_ANSWER),
    "null": (lambda: reply(None), Reason.BAD_ANSWER),
    "empty": (lambda: reply(""), Reason.BAD_ANSWER),
    "blank": (lambda: reply(" \n"), Reason.BAD_ANSWER),
    "parts": (lambda: reply([{"type": "text"}]), Reason.BAD_ANSWER),
    "filtered": (lambda: reply("I must n", "content_filter"), Reason.CONTENT_FILTER),
    "filtered at once": (lambda: failure(400, code="content_filter"), Reason.CONTENT_FILTER),
    "policy": (lambda: failure(400, code="content_policy_violation"), Reason.CONTENT_FILTER),
    "too long": (lambda: failure(400, code="context_length_exceeded"), Reason.CONTEXT_FULL),
    "too long for llama.cpp": (
        lambda: failure(400, code=400, type="exceed_context_size_error"),
        Reason.CONTEXT_FULL,
    ),
    "too long for vLLM": (
        lambda: failure(400, code=400, message="This model's maximum context length is 2048"),
        Reason.CONTEXT_FULL,
    ),
}


@pytest.mark.parametrize("case", REFUSED_ANSWERS)
def test_an_answer_of_no_use_is_refused_with_its_reason(case: str) -> None:
    answer, reason = REFUSED_ANSWERS[case]
    with pytest.raises(Refused) as found:
        ask(lambda body, number: answer())
    assert found.value.reason is reason


FATAL = {
    "wrong key": (lambda: failure(401, message=f"Incorrect API key: {KEY}"), "refuses the API key"),
    "no right": (lambda: failure(403, message="Country not supported"), "refuses the API key"),
    "no model": (lambda: failure(404, message="The model gpt-x does not exist"), "no such model"),
    "no money": (lambda: failure(429, code="insufficient_quota"), "quota is used up"),
}


@pytest.mark.parametrize("case", FATAL)
def test_what_no_call_can_overcome_stops_everything(case: str) -> None:
    answer, message = FATAL[case]
    with pytest.raises(ModelFailed, match=message) as found:
        ask(lambda body, number: answer())
    assert "\n" not in str(found.value)


def test_a_request_that_the_endpoint_finds_fault_with_is_unwelcome() -> None:
    with pytest.raises(Unwelcome, match="Unknown parameter: seed"):
        ask(lambda body, number: failure(400, message="Unknown parameter: seed"))


def test_a_model_that_knows_the_limit_by_its_newer_name_gets_it_by_that() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any], number: int) -> Any:
        seen.append(body)
        if "max_tokens" in body:
            return failure(400, message="Unsupported parameter: use max_completion_tokens")
        return reply("Because.")

    assert ask(answer)
    assert "max_tokens" not in seen[-1]
    assert seen[-1]["max_completion_tokens"] == seen[0]["max_tokens"]


async def cut_body(body: dict[str, Any], number: int) -> web.StreamResponse:
    """Announces more than it sends."""
    return web.Response(text='{"choices": [', headers={"Content-Length": "5000"})


class Reset(web.Response):
    """Closes the connection instead of answering."""

    async def prepare(self, request: web.BaseRequest) -> None:  # type: ignore[override]
        assert request.transport is not None
        request.transport.abort()


async def late(body: dict[str, Any], number: int) -> web.StreamResponse:
    await asyncio.sleep(1.0)
    return reply("Too late.")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_endpoint_is_worth_another_try(status: int) -> None:
    with pytest.raises(Busy, match=f"status {status}: wait") as found:
        ask(lambda body, number: failure(status, message="wait"))
    assert type(found.value) is Busy
    assert found.value.retry_after is None


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None)]
)
def test_the_pause_asked_for_is_read_from_the_header(said: str, seconds: float | None) -> None:
    with pytest.raises(Busy) as found:
        ask(lambda body, number: failure(429, {"Retry-After": said}))
    assert found.value.retry_after == seconds


@pytest.mark.parametrize("answer", [cut_body, late, lambda body, number: Reset()])
def test_an_answer_lost_on_the_way_may_have_cost(answer: Answer) -> None:
    with pytest.raises(Lost):
        ask(answer, timeout=0.2)


def test_an_endpoint_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        send(f"http://127.0.0.1:{port}/v1")


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with Endpoint() as other:
        moved = {"Location": f"{other.url}/chat/completions"}
        with pytest.raises(Busy, match="301"):
            ask(lambda body, number: web.Response(status=301, headers=moved))
    assert other.ledger == []


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {"prompt_tokens": "12", "completion_tokens": 3},
        {"prompt_tokens": -12, "completion_tokens": 3},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        {"completion_tokens": 3},
    ],
)
def test_a_usage_that_says_nothing_is_none(usage: Any) -> None:
    assert ask(lambda body, number: reply("Because.", usage=usage)).usage is None


def test_lone_surrogates_do_not_get_in() -> None:
    found = ask(lambda body, number: reply("a\ud800b", id="c\udfff", model="m\ud800"))
    assert (found.text, found.request_id, found.model) == ("a?b", "c?", "m?")


def test_the_key_is_in_no_message(key: None) -> None:
    answers: list[Answer] = [
        lambda body, number: failure(401, message=f"wrong key {KEY}"),
        lambda body, number: failure(400, message=f"wrong key {KEY}"),
        lambda body, number: web.Response(status=500, text=f"<pre>Bearer {KEY}</pre>"),
    ]
    for answer in answers:
        with pytest.raises(Exception, match=r"\*\*\*") as found:
            ask(answer)
        assert KEY not in str(found.value)


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="no API key: set OPENAI_API_KEY, or OPENAI_API_KEY_FILE"):
        RemoteModel("gpt-x")
    RemoteModel("gpt-x", "http://127.0.0.1:1/v1")


def test_the_address_comes_from_the_environment_when_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Endpoint(lambda body, number: reply("Because.")) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)

        async def session() -> str:
            model = RemoteModel("gpt-x")
            try:
                return await model.send(REQUEST)
            finally:
                await model.close()

        assert json.loads(asyncio.run(session()))["model"] == "teacher-0613"


@pytest.mark.parametrize("url", ["api.openai.com/v1", "ftp://host/v1", "localhost:8000"])
def test_a_base_url_needs_its_scheme(url: str) -> None:
    with pytest.raises(UsageError, match="must start with http"):
        RemoteModel("gpt-x", url)
