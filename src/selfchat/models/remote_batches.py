"""OpenAI's Batch API: many requests in one file, answered within a day at half the price."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import aiohttp

from selfchat.models.base import Answer, Busy, ModelFailed, Request
from selfchat.models.remote import RemoteModel, failure

MOST_REQUESTS = 50_000  # in one batch, by the API's documentation
MOST_BYTES = 150_000_000  # of one file; the API takes 200 MB
_MARK = "selfchat"  # the metadata's key
_ENDED = ("completed", "failed", "expired", "cancelled")
_PAGE = 100


class BatchState(NamedTuple):
    """How far a batch is, by the provider."""

    status: str
    done: int
    total: int
    files: tuple[str, ...]  # of answers and of errors
    faults: tuple[tuple[str, str], ...]  # codes and messages of a batch that was not taken

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


class BatchLine(NamedTuple):
    """One call's end: its answer, or what went wrong; neither where it was not made."""

    label: str
    answer: Answer | None
    fault: Exception | None


class RemoteBatches:
    """The batches of one endpoint; errors are those of Model.send."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model

    def row(self, label: str, request: Request) -> bytes:
        """One line of a batch's file."""
        row = {
            "custom_id": label,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": self._model.body(request),
        }
        return json.dumps(row).encode() + b"\n"

    async def submit(self, rows: Iterable[bytes], mark: str) -> str:
        """Upload a file and make a batch of it; `mark` finds it again. Gives the provider's id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field(
            "file",
            b"".join(rows),
            filename=f"{mark}.jsonl",
            content_type="application/jsonl",
        )
        file = _object(await self._model.call("POST", "/files", data=form))
        body = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {_MARK: mark},
        }
        return str(_object(await self._model.post("/batches", body, mark))["id"])

    async def find(self, mark: str) -> str | None:
        """The provider's id of the batch that carries the mark."""
        after = ""
        while True:
            page = _object(await self._model.call("GET", f"/batches?limit={_PAGE}{after}"))
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get(_MARK) == mark:
                    return str(batch["id"])
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={batches[-1]['id']}"

    async def state(self, batch: str) -> BatchState:
        stated = _object(await self._model.call("GET", f"/batches/{batch}"))
        counts = stated.get("request_counts") or {}
        files = stated.get("output_file_id"), stated.get("error_file_id")
        faults = (stated.get("errors") or {}).get("data") or []
        return BatchState(
            status=str(stated.get("status")),
            done=int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
            total=int(counts.get("total") or 0),
            files=tuple(file for file in files if file),
            faults=tuple((str(fault.get("code")), str(fault.get("message"))) for fault in faults),
        )

    async def lines(self, file: str) -> Iterator[BatchLine]:
        """The calls of an output or error file; a line that makes no sense is passed over."""
        content = await self._model.download(f"/files/{file}/content")
        return filter(None, (self._line(line) for line in content.splitlines() if line.strip()))

    def _line(self, line: str) -> BatchLine | None:
        try:
            told = json.loads(line)
            label, response = str(told["custom_id"]), told.get("response")
            if not response:
                return BatchLine(label, None, None)
            status, body = int(response["status_code"]), response["body"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        raw = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        raw = raw.encode("utf-8", "replace").decode()
        if status == 200:
            return BatchLine(label, Answer(raw, str(response.get("request_id") or "")), None)
        fault = failure(status, raw, {}, self._model.address, "the batch")
        passing = isinstance(fault, Busy)
        return BatchLine(label, None, None if passing else fault)


def _object(answer: Answer) -> dict[str, Any]:
    try:
        stated = json.loads(answer.raw)
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise Busy(f"not what the Batch API answers: {answer.raw[:80]!r}")
    return stated


def not_taken(state: BatchState) -> Exception:
    """What a batch that the provider did not take means."""
    code, message = state.faults[0] if state.faults else ("", state.status)
    if code == "token_limit_exceeded":
        return Busy(message)
    if state.status == "cancelled":
        return ModelFailed("the batch was cancelled at the provider; run again to go on without it")
    return ModelFailed(f"the provider did not take the batch: {message} ({code or 'no code'})")
