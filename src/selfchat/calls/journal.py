"""The journal of calls: an SQLite file in which every answer is on disk before it is parsed.

A call is keyed by the whole request, model and provider (not its address), so that it is never made
twice. Writes of many calls share one commit with `synchronous=FULL`: while a thread commits, the
next group gathers, and a caller goes on only after the commit of its own write.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from selfchat.calls.salvage import is_damaged, readable_rows
from selfchat.core.errors import SelfchatError
from selfchat.core.records import Usage

_FORMAT = 2
_CALLS = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,                -- SHA-256 of what the answer depends on
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    prompts TEXT NOT NULL,            -- names and hashes of the prompts
    request TEXT NOT NULL,            -- JSON
    label TEXT NOT NULL,              -- the idempotency key that went with it
    attempts INTEGER NOT NULL,        -- times it was sent
    lost INTEGER NOT NULL,            -- attempts whose end is not known: under way, or cut off
    reserved_tokens INTEGER NOT NULL, -- the most that one attempt may cost
    reserved_price REAL NOT NULL,     -- dollars
    started TEXT NOT NULL,            -- UTC, of the last attempt
    batch INTEGER,                    -- the batch that it waits in, or was answered in
    raw TEXT,                         -- the answer as it came; NULL while there is none
    checksum INTEGER,                 -- CRC-32 of `raw`
    request_id TEXT,                  -- as the response's header has it
    seconds REAL,
    finished TEXT,
    answer_id TEXT,                   -- as the answer itself has it; from here on what was parsed
    model_returned TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cached_tokens INTEGER,
    price REAL                        -- dollars; NULL where price or usage is unknown
)
"""
_CALL_COLUMNS = 24
_INDEX = "CREATE UNIQUE INDEX calls_by_key ON calls (key)"
_BATCHES = """
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    mark TEXT NOT NULL,               -- goes with the batch as metadata, to find it again
    provider_id TEXT,                 -- NULL until the provider is known to have it
    state TEXT NOT NULL,              -- intended, submitted, ended
    started TEXT NOT NULL
)
"""
_BATCH_COLUMNS = 5
_BATCH_STATES = ("intended", "submitted", "ended")
_INTEND = """
INSERT INTO calls (id, key, model, provider, prompts, request, label, attempts, lost,
                   reserved_tokens, reserved_price, started, batch)
VALUES (?, ?, ?, ?, ?, ?, ?, 1, 1, ?, ?, ?, ?)
"""
_SPENT = """
SELECT
    coalesce(sum(lost * reserved_tokens + (raw IS NOT NULL)
                 * coalesce(prompt_tokens + completion_tokens, reserved_tokens)), 0),
    coalesce(sum(lost * reserved_price
                 + (raw IS NOT NULL) * coalesce(price, reserved_price)), 0.0),
    count(raw), coalesce(sum(lost), 0), coalesce(sum(attempts), 0),
    coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
    coalesce(sum(cached_tokens), 0)
FROM calls
"""
_GAVE_UP_SECONDS = 30.0  # of waiting for another process that holds the file


class Intent(NamedTuple):
    """What is written of a call before it is sent."""

    key: bytes
    model: str
    provider: str
    prompts: str
    request: str
    label: str
    tokens: int  # the most that it may cost
    dollars: float


class Entry(NamedTuple):
    """A call as the journal has it; `raw` is None while it has no answer."""

    id: int
    raw: str | None
    seconds: float
    finished: str
    request_id: str
    batch: str | None  # the provider's batch that it was answered in
    described: bool  # whether the row has what the answer says of itself
    price: float | None = None  # dollars, as they were when it was described


class Batch(NamedTuple):
    """Calls that were given to a provider together."""

    id: int
    mark: str
    provider_id: str | None
    state: str
    model: str | None  # that its calls ask; None where it has no call


class Spent(NamedTuple):
    """What the journal's calls cost, attempts without an end at the most they may have cost."""

    tokens: int
    dollars: float
    answered: int
    ambiguous: int  # attempts whose answer was lost: it is not known whether they cost
    attempts: int
    usage: Usage  # of the answered calls that said it


class Salvaged(NamedTuple):
    """What became of a damaged journal."""

    rows: int  # that could be read
    lost: int  # ids of which no row was found
    kept_as: Path  # the damaged file


class _Write(NamedTuple):
    statement: str
    values: tuple[Any, ...]
    done: asyncio.Future[None] | None


class Journal:
    """Open one per run directory, and close it; every method but `close` is for one event loop.

    `salvaged` says what was lost when the file was found damaged, else it is None.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.salvaged: Salvaged | None = None
        self.damaged_answers = 0  # found so far by their checksums
        self._writer = self._open()
        self._reader = self._connect(self._path)
        self._next_id: int = 1 + self._one("SELECT coalesce(max(id), 0) FROM calls")
        self._next_batch: int = 1 + self._one("SELECT coalesce(max(id), 0) FROM batches")
        self._waiting: list[_Write] = []
        self._committing: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect(self._path)
            if is_damaged(connection):
                connection.close()
                connection = self._salvage()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from None
        except sqlite3.DatabaseError:
            connection = self._salvage()
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        return connection

    def _unusable(self, error: sqlite3.Error) -> SelfchatError:
        return SelfchatError(
            f"{self._path}: {error}; see that the folder can be written and has room"
        )

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, check_same_thread=False, isolation_level=None, timeout=_GAVE_UP_SECONDS
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-16000")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if version == 0 and tables == 0:
            connection.execute("BEGIN")
            for statement in (_CALLS, _INDEX, _BATCHES, f"PRAGMA user_version={_FORMAT}"):
                connection.execute(statement)
            connection.execute("COMMIT")
        elif version != _FORMAT:
            raise SelfchatError(
                f"{self._path}: a journal of another version of selfchat, or no journal; go on "
                "with that version, or choose another --out"
            )

    def _salvage(self) -> sqlite3.Connection:
        """Put the readable rows of a damaged file into a new one, and keep the damaged one."""
        found: dict[int, tuple[Any, ...]] = {}
        for rowid, row in readable_rows(self._path, _CALL_COLUMNS):
            if not _is_call(row):
                continue
            before = found.get(rowid)
            if before is None or _told(row) >= _told(before):
                found[rowid] = (rowid, *row[1:])
        if not found:
            raise SelfchatError(
                f"{self._path}: damaged, and no call in it can be read; restore it from a copy, or "
                "move it away and pay anew"
            )
        batches = {
            rowid: (rowid, *row[1:])
            for rowid, row in readable_rows(self._path, _BATCH_COLUMNS)
            if row[3] in _BATCH_STATES
        }
        kept_as = self._set_aside()
        connection = self._connect(self._path)
        self._prepare(connection)
        connection.execute("BEGIN")
        connection.executemany(_insert("calls", _CALL_COLUMNS), found.values())
        connection.executemany(_insert("batches", _BATCH_COLUMNS), batches.values())
        connection.execute("COMMIT")
        self.salvaged = Salvaged(len(found), max(found) - len(found), kept_as)
        return connection

    def _set_aside(self) -> Path:
        """Rename the damaged file and its write-ahead log."""
        stem = f"{self._path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("-wal", "-shm"):
            beside = self._path.with_name(self._path.name + suffix)
            if beside.exists():
                beside.rename(self._path.with_name(stem + suffix))
        return self._path.rename(self._path.with_name(stem))

    def _one(self, query: str) -> Any:
        return self._reader.execute(query).fetchone()[0]

    def entry(self, key: bytes) -> Entry | None:
        """The call of that key, if there is one; an answer that was damaged on disk is none."""
        row = self._reader.execute(
            "SELECT id, raw, seconds, finished, request_id,"
            " (SELECT provider_id FROM batches WHERE batches.id = calls.batch),"
            " model_returned IS NOT NULL, price, checksum FROM calls WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        entry, checksum = Entry(*row[:-1]), row[-1]
        if entry.raw is None or zlib.crc32(entry.raw.encode()) == checksum:
            return entry
        self.damaged_answers += 1
        self._put("UPDATE calls SET raw = NULL, lost = lost + 1 WHERE id = ?", (entry.id,))
        return entry._replace(raw=None)

    def spent(self) -> Spent:
        row = self._reader.execute(_SPENT).fetchone()
        tokens, dollars, answered, ambiguous, attempts, prompt, completion, cached = row
        usage = Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
        return Spent(tokens, dollars, answered, ambiguous, attempts, usage)

    async def intend(self, intent: Intent, at: str, batch: int | None = None) -> int:
        """Put on disk that a call is about to be sent; give its id."""
        number = self._next_id
        self._next_id += 1
        await self._kept(_INTEND, (number, *intent, at, batch))
        return number

    async def intend_again(self, number: int, at: str, batch: int | None = None) -> None:
        """Put on disk that a call is about to be sent another time."""
        await self._kept(
            "UPDATE calls SET attempts = attempts + 1, lost = lost + 1, started = ?, batch = ?"
            " WHERE id = ?",
            (at, batch, number),
        )

    async def withdraw(self, number: int) -> None:
        """Put on disk that the last attempt failed without costing anything."""
        await self._kept("UPDATE calls SET lost = lost - 1 WHERE id = ?", (number,))

    async def keep(self, number: int, raw: str, request_id: str, seconds: float, at: str) -> None:
        """Put the raw answer on disk."""
        await self._kept(
            "UPDATE calls SET raw = ?, checksum = ?, request_id = ?, seconds = ?, finished = ?,"
            " lost = lost - 1 WHERE id = ?",
            (raw, zlib.crc32(raw.encode()), request_id, seconds, at, number),
        )

    def describe(
        self, number: int, model: str, answer_id: str, usage: Usage | None, price: float | None
    ) -> None:
        """Add what the parsed answer says of itself; it need not be waited for, `raw` has it."""
        tokens: tuple[int | None, ...] = (None, None, None)
        if usage is not None:
            tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        self._put(
            "UPDATE calls SET model_returned = ?, answer_id = ?, prompt_tokens = ?,"
            " completion_tokens = ?, cached_tokens = ?, price = ? WHERE id = ?",
            (model, answer_id, *tokens, price, number),
        )

    async def intend_batch(self, mark: str, at: str) -> int:
        """Put on disk that a batch is about to be made; give its id."""
        number = self._next_batch
        self._next_batch += 1
        await self._kept(
            "INSERT INTO batches (id, mark, state, started) VALUES (?, ?, 'intended', ?)",
            (number, mark, at),
        )
        return number

    async def batch_is(self, number: int, state: str, provider_id: str | None) -> None:
        await self._kept(
            "UPDATE batches SET state = ?, provider_id = ? WHERE id = ?",
            (state, provider_id, number),
        )

    def open_batches(self) -> list[Batch]:
        """Those that have not ended, in the order they were made."""
        rows = self._reader.execute(
            "SELECT id, mark, provider_id, state,"
            " (SELECT model FROM calls WHERE batch = batches.id LIMIT 1)"
            " FROM batches WHERE state != 'ended' ORDER BY id"
        )
        return [Batch(*row) for row in rows]

    def waiting_in(self, batch: int) -> dict[str, int]:
        """The ids of a batch's unanswered calls, by label."""
        rows = self._reader.execute(
            "SELECT label, id FROM calls WHERE batch = ? AND raw IS NULL AND lost > 0", (batch,)
        )
        return dict(rows.fetchall())

    async def flush(self) -> None:
        """Wait until all that was written is on disk."""
        while self._waiting or self._committing:
            self._begin()
            if self._committing:
                await asyncio.wait([self._committing])

    async def _kept(self, statement: str, values: tuple[Any, ...]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(statement, values, done)
        await done

    def _put(
        self, statement: str, values: tuple[Any, ...], done: asyncio.Future[None] | None = None
    ) -> None:
        self._waiting.append(_Write(statement, values, done))
        if len(self._waiting) == 1 and self._committing is None:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Execute all writes that wait, and have the thread commit them.

        Only the commit waits for the disk. Executing here rather than in the thread saves a change
        of threads for each statement.
        """
        if not self._waiting or self._committing is not None:
            return
        group, self._waiting = self._waiting, []
        fault = self._execute(group)
        if fault is not None:
            _settle(group, fault)
            return
        loop = asyncio.get_running_loop()
        self._committing = loop.run_in_executor(self._thread, self._commit)
        self._committing.add_done_callback(lambda commit: self._committed(group, commit))

    def _execute(self, group: list[_Write]) -> SelfchatError | None:
        """Run a group's statements in a transaction; one that cannot be stored fails alone."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for write in group:
                try:
                    self._writer.execute(write.statement, write.values)
                except (ValueError, OverflowError) as error:
                    _settle([write], self._fault(error))
        except sqlite3.Error as error:
            self._roll_back()
            return self._fault(error)
        return None

    def _commit(self) -> None:
        self._writer.execute("COMMIT")

    def _committed(self, group: list[_Write], commit: asyncio.Future[None]) -> None:
        self._committing = None
        error = commit.exception()
        if error is None:
            _settle(group, None)
        else:
            self._roll_back()
            _settle(group, self._fault(error))
        self._begin()

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _fault(self, error: BaseException) -> SelfchatError:
        return SelfchatError(f"{self._path}: cannot write the journal: {error}")

    def close(self) -> None:
        """Writes that nobody waited for are committed too."""
        self._thread.shutdown(wait=True)
        with suppress(sqlite3.Error):  # what nobody waits for can be had again from `raw`
            if self._waiting and self._execute(self._waiting) is None:
                self._commit()
        self._reader.close()
        self._writer.close()


def _settle(group: list[_Write], fault: SelfchatError | None) -> None:
    for write in group:
        if write.done is None or write.done.done():
            continue
        if fault:
            write.done.set_exception(fault)
        else:
            write.done.set_result(None)


def _insert(table: str, columns: int) -> str:
    return f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * columns)})"


def _is_call(row: tuple[Any, ...]) -> bool:
    """Whether a salvaged row has the types of a call; its answer is checked when it is read."""
    return (
        isinstance(row[1], bytes)
        and all(isinstance(value, str) for value in row[2:7])
        and all(isinstance(value, int) for value in row[7:10])
        and isinstance(row[11], str)
        and isinstance(row[13], str | None)
    )


def _told(row: tuple[Any, ...]) -> tuple[bool, bool, int]:
    """How much a copy of a row knows; an older copy may be left on a stale page."""
    return row[13] is not None, row[19] is not None, row[7]
