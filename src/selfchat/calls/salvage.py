"""Reads the rows of a damaged SQLite file page by page, without its b-trees.

SQL cannot read past a damaged schema or root page, though most rows still stand on pages that are
whole. The sections named here are those of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import io
import math
import os
import sqlite3
import struct
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

Value = int | float | str | bytes | None
Row = tuple[int, tuple[Value, ...]]

_PAGE_SIZES = (4096, 512, 1024, 2048, 8192, 16384, 32768, 65536)  # the default first
_SAMPLE = 4 << 20  # bytes of the file that a page size is tried on
_LONGEST = 100_000_000  # bytes of a row; a longer one is taken for damage
_TABLE_LEAF = 0x0D
_FIXED_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # bytes of serial types 0 to 9
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damaged(connection: sqlite3.Connection) -> bool:
    """Whether SQLite finds a fault in the file; raises where another process locks it."""
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY:
            raise
        return True
    return bool(found != ("ok",))


def readable_rows(path: Path, columns: int) -> Iterator[Row]:
    """Every row with its rowid that stands on a readable table-leaf page and has `columns` columns.

    It trusts no b-tree and no header: damaged pages are passed over, and all of a cell is checked
    that can be. The rest is the caller's to settle, best by a checksum in each row:

    - Rows come in the order of the pages and from every table with so many columns. A row written
      before a column was added has fewer.
    - Values are as stored: NULL for an INTEGER PRIMARY KEY, an int for a whole number in a REAL.
    - Where the freelist is damaged, deleted rows and older versions of a row may come back, even
      with another row's end. Bytes changed within a value are not noticed.
    - A row whose last overflow page is nothing but zeros is left out: most likely it was zeroed.

    Only the file itself is read: bring its write-ahead log into it first.
    """
    with path.open("rb", buffering=0) as file:
        pages = _as_pages(file, columns)
        free = _free_pages(pages)
        for number in range(2, pages.last + 1):  # page 1 belongs to sqlite_schema
            if number not in free:
                yield from _rows(pages, number, columns)


class _Pages(NamedTuple):
    file: io.FileIO
    size: int
    usable: int  # bytes of a page without those reserved at its end
    last: int

    def read(self, number: int) -> bytes:
        """The usable bytes of a page; fewer where the file ends or the disk fails."""
        try:
            self.file.seek((number - 1) * self.size)
            return self.file.read(self.usable)
        except OSError:
            return b""


def _as_pages(file: io.FileIO, columns: int) -> _Pages:
    """The file cut where most rows become readable; its header (section 1.3) only breaks a tie."""
    length = os.fstat(file.fileno()).st_size
    header = _Pages(file, 100, 100, 1).read(1).ljust(100, b"\0")
    size, reserved = int.from_bytes(header[16:18], "big"), header[20]
    size = 65536 if size == 1 else size
    cuts = [(size, reserved)] if size in _PAGE_SIZES else []
    cuts += [(size, 0) for size in _PAGE_SIZES]

    def readable(pages: _Pages) -> int:
        numbers = range(2, min(pages.last, _SAMPLE // pages.size) + 1)
        return sum(1 for number in numbers for _ in _rows(pages, number, columns))

    return max((_Pages(file, s, s - end, -(-length // s)) for s, end in cuts), key=readable)


def _free_pages(pages: _Pages) -> set[int]:
    """The pages of the freelist (section 1.5); none where it is not whole."""
    trunk, total = struct.unpack(">II", pages.read(1)[32:40].ljust(8, b"\0"))
    free: set[int] = set()
    found = 0
    while trunk:
        page = pages.read(trunk).ljust(8, b"\0")
        following, leaves = struct.unpack_from(">II", page)
        if 8 + 4 * leaves > len(page):
            return set()
        free |= {trunk, *struct.unpack_from(f">{leaves}I", page, 8)}
        found += 1 + leaves
        if len(free) != found:  # a page that is listed twice, or a trunk that comes again
            return set()
        trunk = following
    return free if found == total else set()


def _rows(pages: _Pages, number: int, columns: int) -> Iterator[Row]:
    page = pages.read(number)
    for cell in _cells(page):
        row = _row(pages, page, cell, columns)
        if row:
            yield row


def _cells(page: bytes) -> tuple[int, ...]:
    """Where the cells of a table-leaf page start (section 1.6); none for any other page."""
    if len(page) < 8 or page[0] != _TABLE_LEAF:
        return ()
    cells = int.from_bytes(page[3:5], "big")
    first = 8 + 2 * cells
    if first > len(page):
        return ()
    return tuple(cell for cell in struct.unpack_from(f">{cells}H", page, 8) if cell >= first)


def _row(pages: _Pages, page: bytes, at: int, columns: int) -> Row | None:
    """The row of the cell at `at` (section 1.6), or None where it is not valid."""
    try:
        length, at = _varint(page, at)
        rowid, start = _varint(page, at)
        types, body = _serial_types(page, start, columns)
        sizes = [(kind - 12) // 2 if kind >= 12 else _FIXED_SIZES[kind] for kind in types]
        end = start + _local(length, pages.usable)
        spilled = start + length - end
        if length > min(_LONGEST, pages.last * pages.size) or length != body - start + sum(sizes):
            return None
        payload = page[body:end]
        if spilled:
            payload += _overflow(pages, int.from_bytes(page[end : end + 4], "big"), spilled)
        if len(payload) != sum(sizes):
            return None
        stops = accumulate(sizes)
        stored = (payload[stop - size : stop] for size, stop in zip(sizes, stops, strict=True))
        return rowid - (rowid >> 63 << 64), tuple(map(_value, types, stored))
    except (IndexError, ValueError):
        return None


def _serial_types(page: bytes, at: int, columns: int) -> tuple[list[int], int]:
    """The serial types in a record's header, and where its body starts (section 2.1).

    The whole header must stand on the leaf page: 4096 bytes have room for 489 of it at least.
    """
    length, following = _varint(page, at)
    body = at + length
    types: list[int] = []
    while following < body and len(types) < columns:
        kind, following = _varint(page, following)
        types.append(kind)
    if following != body or len(types) != columns:
        raise ValueError("another number of columns")
    return types, body


def _local(length: int, usable: int) -> int:
    """How much of a payload stands on its leaf page (section 1.6: P and U; X, M and K)."""
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if length <= most:
        return length
    wanted = least + (length - least) % (usable - 4)
    return wanted if wanted <= most else least


def _overflow(pages: _Pages, number: int, length: int) -> bytes:
    """The other `length` bytes of a payload, from a chain of overflow pages (section 1.6)."""
    parts: list[bytes] = []
    page = b""
    while length > 0:
        if number < 2:
            raise ValueError("a chain that ends too early")
        page = pages.read(number)
        number = int.from_bytes(page[:4], "big")
        parts.append(page[4 : 4 + length])
        length -= pages.usable - 4
    if number or not any(page):
        raise ValueError("a chain that goes on, perhaps in circles, or whose last page was zeroed")
    return b"".join(parts)


def _value(kind: int, stored: bytes) -> Value:
    """The value of a serial type (section 2.1)."""
    if kind >= 12:
        return stored.decode() if kind % 2 else stored
    if kind >= 8:
        return kind - 8
    if kind == 7:
        number: float = struct.unpack(">d", stored)[0]
        if math.isnan(number):
            raise ValueError("SQLite stores NULL for NaN")
        return number
    return int.from_bytes(stored, "big", signed=True) if kind else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of 1 to 9 bytes, and where it ends (section 1.6)."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9
