"""Kills a collection again and again, and counts by the endpoint's ledger what that costs."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from command import Child, finish, kill

Start = Callable[[Path], Child]
Moment = Callable[[Child], bool]  # waits for a moment to kill; False when it was over before


class Row(NamedTuple):
    """A call as a journal on disk has it."""

    answered: bool
    attempts: int
    lost: int
    reserved: int  # tokens


class Killed(NamedTuple):
    """What became of a run that was killed so many times, and then let finish."""

    kills: int
    figures: dict[str, Any]  # of the last run's --json
    calls: int
    repeats: int  # calls that the endpoint answered more than once
    paid_twice: int  # of those, calls whose answer was in the journal when they were repeated
    unmarked: int  # repeats that the journal does not mark as ambiguous
    uncharged: int  # tokens of ambiguous attempts that the figures leave out


def rows(journal: Path) -> dict[str, Row]:
    """The calls by label, read from a copy: to open a journal mends it."""
    with tempfile.TemporaryDirectory() as folder:
        for file in journal.parent.glob(f"{journal.name}*"):
            shutil.copy(file, folder)
        connection = sqlite3.connect(Path(folder) / journal.name)
        try:
            found = connection.execute(
                "SELECT label, raw IS NOT NULL, attempts, lost, reserved_tokens FROM calls"
            ).fetchall()
        except sqlite3.OperationalError:  # killed before there was a table
            found = []
        connection.close()
    return {label: Row(bool(answered), *counts) for label, answered, *counts in found}


def kill_often(
    start: Start, run: Path, asked: Callable[[], list[str]], kills: int, moment: Moment
) -> Killed:
    """Kill -9 so many times, or as often as it is still running then, and let it finish.

    Args:
        asked: the labels of all calls that came to the endpoint so far.
    """
    paid: set[str] = set()
    paid_twice = done = 0
    while True:
        seen = len(asked())
        child = start(run)
        alive = done < kills and moment(child)
        if alive:
            kill(child)
            done += 1
        else:
            code, out, error = finish(child, seconds=300)
            assert code == 0, error
        paid_twice += sum(label in paid for label in asked()[seen:])
        found = rows(run / "journal.sqlite")
        paid = {label for label, row in found.items() if row.answered}
        if not alive:
            return _counted(done, json.loads(out), Counter(asked()), found, paid_twice)


def while_calls_are_under_way(asked: Callable[[], list[str]], draws: random.Random) -> Moment:
    """Some calls after the first, but every fifth time while it starts."""

    def moment(child: Child) -> bool:
        if draws.random() < 0.2:
            time.sleep(draws.uniform(0.0, 0.6))
            return child.poll() is None
        goal = len(asked()) + draws.randint(1, 12)
        while len(asked()) < goal and child.poll() is None:
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 0.03))
        return child.poll() is None

    return moment


def within(seconds: float, draws: random.Random) -> Moment:
    """At any time so soon."""

    def moment(child: Child) -> bool:
        time.sleep(draws.uniform(0.0, seconds))
        return child.poll() is None

    return moment


def _counted(
    kills: int, figures: dict[str, Any], asked: Counter[str], found: dict[str, Row], paid_twice: int
) -> Killed:
    usage = figures["prompt_tokens"] + figures["completion_tokens"]
    ambiguous = sum(row.lost * row.reserved for row in found.values())
    return Killed(
        kills=kills,
        figures=figures,
        calls=len(asked),
        repeats=asked.total() - len(asked),
        paid_twice=paid_twice,
        unmarked=sum(max(0, count - 1 - found[label].lost) for label, count in asked.items()),
        uncharged=usage + ambiguous - figures["tokens"],
    )
