"""The journal of calls: an SQLite file in which every answer is on disk before it is parsed.

A call is keyed by the whole request, model and provider (not its address), so that it is never made
twice. Writes of many calls share one commit: a writer thread takes all that wait, commits them with
`synchronous=FULL`, and only then are their callers let go on.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from selfchat.core.errors import SelfchatError
from selfchat.core.records import Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    request TEXT NOT NULL,            -- JSON
    attempts INTEGER NOT NULL,        -- times it was sent
    reserved_tokens INTEGER NOT NULL, -- the most that an unanswered attempt may have cost
    reserved_price REAL NOT NULL,
    raw TEXT,                         -- the answer as it came; NULL while there is none
    model_returned TEXT,
    request_id TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cached_tokens INTEGER,
    price REAL,                       -- dollars; NULL where the price is unknown
    seconds REAL,
    started TEXT NOT NULL,            -- UTC
    finished TEXT
)
"""


class Answer(NamedTuple):
    """An answered call as the journal has it."""

    raw: str
    seconds: float
    finished: str
    described: bool  # whether the row has what the answer says of itself


class Spent(NamedTuple):
    """What the journal's calls cost, attempts without an answer at the most they may have cost."""

    tokens: int
    dollars: float
    answered: int
    ambiguous: int  # attempts whose answer was lost: it is not known whether they cost


class _Write(NamedTuple):
    statement: str
    values: tuple[Any, ...]
    done: asyncio.Future[None]


class Journal:
    """Open one per run directory, and close it; every method but `close` is for one event loop."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._writer = self._connect()
        self._reader = self._connect()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_groups, name="journal", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, check_same_thread=False, isolation_level=None, timeout=30
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise SelfchatError(
                f"{self._path}: {error}; restore it from a copy, or move it away and pay anew"
            ) from None
        return connection

    def answer(self, key: str) -> Answer | None:
        """The answer to a call made before, or None."""
        row = self._reader.execute(
            "SELECT raw, seconds, finished, model_returned IS NOT NULL FROM calls"
            " WHERE key = ? AND raw IS NOT NULL",
            (key,),
        ).fetchone()
        return Answer(*row) if row else None

    def spent(self) -> Spent:
        row = self._reader.execute(
            """
            SELECT
                coalesce(sum(lost * reserved_tokens + answered
                             * coalesce(prompt_tokens + completion_tokens, reserved_tokens)), 0),
                coalesce(sum(lost * reserved_price
                             + answered * coalesce(price, reserved_price)), 0.0),
                count(raw),
                coalesce(sum(lost), 0)
            FROM (SELECT *, raw IS NOT NULL AS answered, attempts - (raw IS NOT NULL) AS lost
                  FROM calls)
            """
        ).fetchone()
        return Spent(*row)

    async def intend(
        self,
        key: str,
        model: str,
        provider: str,
        request: str,
        tokens: int,
        dollars: float,
        at: str,
    ) -> None:
        """Put on disk that a call is about to be sent."""
        await self._put(
            "INSERT INTO calls (key, model, provider, request, attempts, reserved_tokens,"
            " reserved_price, started) VALUES (?, ?, ?, ?, 1, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET attempts = attempts + 1, started = excluded.started",
            (key, model, provider, request, tokens, dollars, at),
        )

    async def withdraw(self, key: str) -> None:
        """Put on disk that the last attempt failed without costing anything."""
        await self._put(
            "UPDATE calls SET attempts = attempts - 1 WHERE key = ? AND raw IS NULL", (key,)
        )

    async def keep(self, key: str, raw: str, seconds: float, at: str) -> None:
        """Put the raw answer on disk."""
        await self._put(
            "UPDATE calls SET raw = ?, seconds = ?, finished = ? WHERE key = ?",
            (raw, seconds, at, key),
        )

    async def describe(
        self, key: str, model: str, request_id: str, usage: Usage | None, price: float | None
    ) -> None:
        """Add what the parsed answer says of itself."""
        tokens: Sequence[int | None] = (None, None, None)
        if usage is not None:
            tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        await self._put(
            "UPDATE calls SET model_returned = ?, request_id = ?, prompt_tokens = ?,"
            " completion_tokens = ?, cached_tokens = ?, price = ? WHERE key = ?",
            (model, request_id, *tokens, price, key),
        )

    async def _put(self, statement: str, values: tuple[Any, ...]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write(statement, values, done))
        await done

    def _write_groups(self) -> None:
        while True:
            first = self._queue.get()
            group = [first]
            while not self._queue.empty():
                group.append(self._queue.get())
            writes = [write for write in group if write is not None]
            if writes:
                self._commit(writes)
            if None in group:
                return

    def _commit(self, writes: Sequence[_Write]) -> None:
        fault: SelfchatError | None = None
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for write in writes:
                self._writer.execute(write.statement, write.values)
            self._writer.execute("COMMIT")
        except (sqlite3.Error, ValueError, OverflowError) as error:  # or no caller would go on
            fault = SelfchatError(f"{self._path}: cannot write the journal: {error}")
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        for write in writes:
            loop = write.done.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, write.done, fault)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._reader.close()
        self._writer.close()


def _settle(done: asyncio.Future[None], fault: SelfchatError | None) -> None:
    if done.done():
        return
    if fault:
        done.set_exception(fault)
    else:
        done.set_result(None)
