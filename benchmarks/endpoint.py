"""An OpenAI-compatible endpoint on loopback that is faster than any of its clients.

    python benchmarks/endpoint.py [--port 0] [--latency 0.0] [--rpm N] [--tpm N] [--no-headers]
                                  [--faults SHARE]

It prints one JSON line with its URL and serves until it is killed. Every chat completion is a
self-chat transcript of three turns that depends on nothing but the request's bytes. `GET /ledger`
tells what was paid for: an admitted call counts when it comes in, whoever waits for its answer;
`DELETE /ledger` begins a new one.

With `--rpm` or `--tpm` a token bucket with continuous refill and one second of burst refuses what
goes over it; both units are charged when a call is admitted, and answers tell of the limits that
there are.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import resource
import time
from collections import Counter
from typing import Any, NamedTuple

_BYTES_A_TOKEN = 4
_TOKENS_A_WORD = 1.33
_VARIANTS = 16

_QUESTIONS = (
    "Could you tell me what {} means and why people care about it so much these days?",
    "That helps. How would {} look in practice, say for somebody who has only just begun?",
    "One last thing, please: which mistake about {} do you see most often, and what avoids it?",
)
_ANSWERS = (
    "In short, {} is a way to get a good result with less effort than one would expect. Most "
    "people meet it early, forget its reasons, and later find that the reasons were what mattered.",
    "A beginner can start with {} in small steps: write down what should happen, try it once, "
    "compare the two, and change one thing at a time. After a week the habit carries itself.",
    "The usual mistake about {} is to do everything at once and to measure nothing. A short note "
    "of what was tried, and of what came of it, avoids most of the trouble and costs very little.",
)
_TOPICS = (
    "careful planning",
    "regular practice",
    "plain writing",
    "good measurement",
    "steady saving",
    "healthy cooking",
    "patient teaching",
    "simple design",
    "honest review",
    "quiet reading",
    "early testing",
    "slow travel",
    "fair trade",
    "shared memory",
    "local history",
    "open science",
)


class Part(NamedTuple):
    """A line of a transcript, as bytes that stand in JSON as they are."""

    text: bytes
    tokens: int


def _parts(speaker: str, templates: tuple[str, ...]) -> list[list[Part]]:
    """For each turn, what a speaker may say."""
    return [
        [_part(f"[{speaker}] {template.format(topic)}") for topic in _TOPICS]
        for template in templates
    ]


def _part(line: str) -> Part:
    return Part(f"{line}\\n".encode(), round(len(line.split()) * _TOKENS_A_WORD))


_LINES = [
    part
    for turn in zip(_parts("Human", _QUESTIONS), _parts("AI", _ANSWERS), strict=True)
    for part in turn
]


def transcript(digest: bytes) -> Part:
    """The transcript that belongs to a request's hash."""
    said = [variants[byte % _VARIANTS] for variants, byte in zip(_LINES, digest, strict=False)]
    return Part(b"".join([part.text for part in said]), sum([part.tokens for part in said]))


_SPOILED = (  # what real teachers make of the task now and then
    Part(b"I'm sorry, but I can't continue this conversation.", 11),
    Part(b"[Human] Is it so?\\n[AI] It is so.\\n[Human] And then?\\n[AI] It is so.\\n", 24),
    Part(b"[AI] What would you like to know about it?\\n", 12),
    Part(b"[Human] What is it?\\n[Human] I mean, why?\\n[AI] Because.\\n", 20),
    Part(b"Human: What is it?\\nAI: Nobody knows.\\n", 14),
    Part(b"", 1),
)


class Bucket:
    """A token bucket of `per_minute` units, of which one second's worth may come at once."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._level = self._burst = max(1.0, self._rate)
        self._at = time.monotonic()

    def wait(self, amount: float) -> float:
        """Seconds until `amount` may be taken; more than the burst may be taken from a full one."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(amount, self._burst) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        self._level -= amount

    @property
    def remaining(self) -> int:
        return max(0, int(self._level))

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return (self._burst - self._level) / self._rate


class Limits:
    """The limits on requests and tokens a minute, and the headers that tell of them."""

    def __init__(self, rpm: int | None, tpm: int | None, headers: bool) -> None:
        named = {"requests": rpm, "tokens": tpm}
        self._buckets = {name: Bucket(limit) for name, limit in named.items() if limit}
        self._told = headers

    def over(self, tokens: int) -> tuple[str, float] | None:
        """The limit that a call is over, and the seconds to wait; None when it is admitted."""
        amounts = {"requests": 1, "tokens": tokens}
        waits = {name: bucket.wait(amounts[name]) for name, bucket in self._buckets.items()}
        for name, wait in waits.items():
            if wait:
                return name, wait
        for name, bucket in self._buckets.items():
            bucket.take(amounts[name])
        return None

    def headers(self) -> bytes:
        if not self._told or not self._buckets:
            return b""
        return "".join(
            f"x-ratelimit-limit-{name}: {bucket.per_minute}\r\n"
            f"x-ratelimit-remaining-{name}: {bucket.remaining}\r\n"
            f"x-ratelimit-reset-{name}: {duration(bucket.reset)}\r\n"
            for name, bucket in self._buckets.items()
        ).encode()


def duration(seconds: float) -> str:
    """Seconds as OpenAI's headers write them: `12ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


class Ledger:
    """What was asked and paid for."""

    def __init__(self) -> None:
        self.bodies: Counter[bytes] = Counter()
        self.seconds: Counter[int] = Counter()
        self.calls = self.refused = self.tokens = self.in_flight = self.most_in_flight = 0
        self._first = self._last = 0.0
        self._used_before = _processor_seconds()

    def admit(self, digest: bytes, tokens: int) -> None:
        now = time.monotonic()
        self._first = self._first or now
        self.seconds[int(now - self._first)] += 1
        self.bodies[digest] += 1
        self.calls += 1
        self.tokens += tokens
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def answered(self) -> None:
        self.in_flight -= 1
        self._last = time.monotonic()

    def told(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "distinct": len(self.bodies),
            "repeats": self.calls - len(self.bodies),
            "refused_429": self.refused,
            "tokens": self.tokens,
            "max_in_flight": self.most_in_flight,
            "span_seconds": round(max(0.0, self._last - self._first), 4),
            "by_second": [self.seconds[at] for at in range(max(self.seconds, default=-1) + 1)],
            "processor_seconds": round(_processor_seconds() - self._used_before, 4),
        }


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Service:
    """Answers requests; shared by all connections."""

    def __init__(self, latency: float, limits: Limits, faults: float) -> None:
        self.latency = latency
        self._spoiled = int(faults * 65536)  # of as many
        self.ledger = Ledger()
        self._limits = limits
        self._created = int(time.time())
        self._loop = asyncio.get_running_loop()

    def handle(self, connection: Connection, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path.endswith(b"/chat/completions"):
            self._complete(connection, body)
        elif path.endswith(b"/ledger"):
            if method == b"DELETE":
                self.ledger = Ledger()
            connection.write(_json_response(200, self.ledger.told()))
        elif path.endswith(b"/models"):
            model = {"id": "m", "object": "model", "created": self._created, "owned_by": "nobody"}
            connection.write(_json_response(200, {"object": "list", "data": [model]}))
        else:
            connection.write(_json_response(404, _error("no such path", "invalid_request_error")))

    def _complete(self, connection: Connection, body: bytes) -> None:
        fault, model = _read_request(body)
        if fault:
            error = json.dumps(_error(fault, "invalid_request_error")).encode()
            connection.write(_response(b"400 Bad Request", error, self._limits.headers()))
            return
        digest = hashlib.blake2b(body, digest_size=16).digest()
        said = transcript(digest)
        if int.from_bytes(digest[-2:]) < self._spoiled:
            said = _SPOILED[digest[-3] % len(_SPOILED)]
        prompt_tokens = len(body) // _BYTES_A_TOKEN
        if over := self._limits.over(prompt_tokens + said.tokens):
            self.ledger.refused += 1
            connection.write(_too_many(*over, self._limits.headers()))
            return
        self.ledger.admit(digest, prompt_tokens + said.tokens)
        answer = _completion(digest, model, said, prompt_tokens, self._created)
        response = _response(b"200 OK", answer, self._limits.headers())
        if self.latency:
            self._loop.call_later(self.latency, self._deliver, connection, response)
        else:
            self._deliver(connection, response)

    def _deliver(self, connection: Connection, response: bytes) -> None:
        self.ledger.answered()
        connection.write(response)


def _read_request(body: bytes) -> tuple[str, str]:
    """What is wrong with a request, and the model that it names."""
    try:
        request = json.loads(body)
        model, messages = request["model"], request["messages"]
    except (ValueError, LookupError, TypeError):
        return "not a chat completion request", ""
    if not messages:
        return "messages is empty", ""
    if request.get("stream"):
        return "this endpoint does not stream", ""
    return "", model


def _completion(digest: bytes, model: str, said: Part, prompt_tokens: int, created: int) -> bytes:
    return (
        b'{"id":"chatcmpl-%s","object":"chat.completion","created":%d,"model":%s,"choices":'
        b'[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},'
        b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,'
        b'"completion_tokens":%d,"total_tokens":%d}}'
        % (
            digest.hex().encode(),
            created,
            json.dumps(model).encode(),
            said.text,
            prompt_tokens,
            said.tokens,
            prompt_tokens + said.tokens,
        )
    )


def _too_many(name: str, wait: float, headers: bytes) -> bytes:
    message = f"Rate limit reached on {name} per minute. Please try again in {duration(wait)}."
    error = {"message": message, "type": name, "param": None, "code": "rate_limit_exceeded"}
    retry = b"Retry-After: %d\r\n" % math.ceil(wait)
    body = json.dumps({"error": error}).encode()
    return _response(b"429 Too Many Requests", body, headers + retry)


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _json_response(status: int, value: Any) -> bytes:
    return _response(b"%d -" % status, json.dumps(value).encode(), b"")


def _response(status: bytes, body: bytes, headers: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status,
        headers,
        len(body),
        body,
    )


class Connection(asyncio.Protocol):
    """One keep-alive connection: whole requests in, responses out."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := take_request(self._buffer)) is not None:
            method, path, body, self._buffer = request
            self._service.handle(self, method, path, body)


def take_request(buffer: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Method, path, body and what follows; None while the request is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    method, path, _ = buffer[: buffer.index(b"\r\n")].split(b" ")
    head = buffer[:end].lower() + b"\r\n"
    if b"transfer-encoding: chunked\r\n" in head:
        whole = _take_chunks(buffer, end + 4)
        return None if whole is None else (method, path, *whole)
    at = head.find(b"\r\ncontent-length:")
    length = int(head[at + 17 : head.index(b"\r\n", at + 2)]) if at >= 0 else 0
    if len(buffer) < end + 4 + length:
        return None
    return method, path, buffer[end + 4 : end + 4 + length], buffer[end + 4 + length :]


def _take_chunks(buffer: bytes, at: int) -> tuple[bytes, bytes] | None:
    """A chunked body and what follows it; trailers are not understood."""
    chunks: list[bytes] = []
    while (end := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:end].partition(b";")[0], 16)
        at = end + 2 + size + 2
        if len(buffer) < at:
            return None
        if not size:
            return b"".join(chunks), buffer[at:]
        chunks.append(buffer[end + 2 : end + 2 + size])
    return None


async def serve(options: argparse.Namespace) -> None:
    limits = Limits(options.rpm, options.tpm, not options.no_headers)
    service = Service(options.latency, limits, options.faults)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(service), "127.0.0.1", options.port, backlog=4096
    )
    host, port = server.sockets[0].getsockname()[:2]
    print(json.dumps({"url": f"http://{host}:{port}/v1"}), flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rpm", type=int, help="most requests a minute")
    parser.add_argument("--tpm", type=int, help="most tokens a minute")
    parser.add_argument("--no-headers", action="store_true", help="say nothing of the limits")
    parser.add_argument("--faults", type=float, default=0.0, help="share of useless answers")
    parser.add_argument("--cpu", type=int, help="the only processor core to run on")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
