"""Any OpenAI-compatible endpoint, over aiohttp."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from selfchat.core.errors import UsageError
from selfchat.core.records import Reason, Usage
from selfchat.models.base import (
    Busy,
    FinishReason,
    Lost,
    ModelFailed,
    Refused,
    Reply,
    Request,
    Unreachable,
    Unwelcome,
)
from selfchat.models.keys import api_key, redact

OPENAI_URL = "https://api.openai.com/v1"
_NEWER_LIMIT = "max_completion_tokens"  # the only name that some newer models know the limit by
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}
_MOST_TOKENS = 1 << 31  # of one call: more is nonsense
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class RemoteModel:
    """A chat model behind `POST {base_url}/chat/completions`."""

    provider = "openai"
    speaks_as_user = False

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
    ) -> None:
        self.address = f"openai:{name}"
        self._name = name
        self._url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")
        if urlsplit(self._url).scheme not in ("http", "https"):
            raise UsageError(f"base URL {self._url!r}: it must start with http:// or https://")
        self._key = api_key(key_variable)
        if not self._key and self._url == OPENAI_URL:
            raise UsageError(
                f"no API key: set {key_variable}, or {key_variable}_FILE to a file that holds it"
            )
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=30)
        self._limit = "max_tokens"
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Request) -> str:
        body = {
            "model": self._name,
            "messages": [
                {"role": message.role, "content": message.content} for message in request.messages
            ],
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            self._limit: request.sampling.max_tokens,
            "seed": request.rng_seed,
        }
        try:
            return await self.post("/chat/completions", body)
        except Unwelcome as fault:
            if self._limit == _NEWER_LIMIT or _NEWER_LIMIT not in fault.detail:
                raise
        body[_NEWER_LIMIT] = body.pop(self._limit)
        answer = await self.post("/chat/completions", body)
        self._limit = _NEWER_LIMIT
        return answer

    async def post(self, path: str, body: dict[str, Any]) -> str:
        """Send one request and return the body of a good answer; see Model.send for the errors."""
        session = self._open_session()
        try:
            async with session.post(self._url + path, json=body, allow_redirects=False) as answer:
                text = (await answer.read()).decode("utf-8", "replace")
                if answer.status == 200:
                    return text
                raise _failure(
                    answer.status, redact(text, self._key), answer.headers, self.address, self._url
                )
        except aiohttp.InvalidURL:
            raise UsageError(f"base URL {self._url!r} is no URL") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            detail = redact(str(error), self._key) or type(error).__name__
            kind = Unreachable if isinstance(error, _NOT_CONNECTED) else Lost
            raise kind(f"{self._url}: {detail}") from None

    def read(self, raw: str) -> Reply:
        try:
            answer = json.loads(raw)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused(Reason.BAD_ANSWER, f"not a chat completion: {raw[:80]!r}") from None
        finish = choice.get("finish_reason")
        if finish == "content_filter":
            raise Refused(Reason.CONTENT_FILTER, "stopped by the provider's filter")
        if not isinstance(text, str) or not text.strip():
            raise Refused(Reason.BAD_ANSWER, "an empty answer")
        return Reply(
            text=_unicode(text),
            finish=_FINISH.get(str(finish), "stop"),
            usage=_usage(answer.get("usage")),
            model=_unicode(str(answer.get("model") or "")),
            request_id=_unicode(str(answer.get("id") or "")),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                timeout=self._timeout,
                headers=headers,
            )
        return self._session


def _unicode(text: str) -> str:
    """`text` with `?` for lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _usage(value: Any) -> Usage | None:
    """What the call used; None when the endpoint does not say so in whole numbers."""
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts: list[Any] = [value.get("prompt_tokens"), value.get("completion_tokens"), cached or 0]
    if not all(isinstance(count, int) and 0 <= count < _MOST_TOKENS for count in counts):
        return None
    return Usage(prompt_tokens=counts[0], completion_tokens=counts[1], cached_tokens=counts[2])


def _failure(status: int, body: str, headers: Any, address: str, url: str) -> Exception:
    """Tell what a status means: stop everything, reject this request, or try again."""
    error = _error_object(body)
    said = str(error.get("message") or body)[:200].replace("\n", " ")
    code = f"{error.get('code') or ''} {error.get('type') or ''}"
    if status in (401, 403):
        return ModelFailed(f"{address}: the endpoint refuses the API key ({status}): {said}")
    if "insufficient_quota" in code:
        return ModelFailed(f"{address}: the account's quota is used up: {said}")
    if status == 404:
        return ModelFailed(f"{address}: no such model or path at {url}: {said}")
    too_long = "context_length" in code or "exceed_context" in code
    if too_long or (status == 400 and "maximum context length" in said.lower()):
        return Refused(Reason.CONTEXT_FULL, said)
    if "content_filter" in code or "content_policy" in code:
        return Refused(Reason.CONTENT_FILTER, said)
    if status == 429 or status in (408, 409) or status >= 500:
        return Busy(f"status {status}: {said}", _retry_after(headers))
    if 400 <= status < 500:
        return Unwelcome(Reason.BAD_ANSWER, f"the endpoint refuses it ({status}): {said}")
    return Busy(f"status {status}: {said}")


def _error_object(body: str) -> dict[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {"message": error}


def _retry_after(headers: Any) -> float | None:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None
