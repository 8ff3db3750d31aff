"""What the scripts of all clients share: the prompts, the clock and what is printed.

Each script sends one chat completion a seed and prints one JSON line. With `--bare` it does only
that, in a folder that it goes on in when it is started again: for killing it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

MODEL = "m"
API_KEY = "none"
MAX_TOKENS = 1024
TEMPERATURE = 1.0
HUGE = 10**9  # for a client's own limits a minute

_PROMPT = Path(__file__).parents[2] / "src/selfchat/template/prompts/self_chat.txt"


class Job(NamedTuple):
    """What a client is to do."""

    base_url: str
    calls: int
    in_flight: int
    folder: Path
    bare: bool

    @property
    def seeds(self) -> list[str]:
        return [f"What should a beginner know about subject number {at}?" for at in self.numbers]

    @property
    def numbers(self) -> range:
        return range(1, self.calls + 1)

    @property
    def prompts(self) -> list[str]:
        template = Template(_PROMPT.read_text("utf-8"))
        return [template.substitute(SEED=seed) + "\n" for seed in self.seeds]

    def only_one(self) -> Job:
        """The same with one call, in a folder of its own."""
        return self._replace(calls=1, folder=self.folder / "one")


class Used(NamedTuple):
    """What something took."""

    seconds: float
    processor_seconds: float
    told: float | None  # seconds by the client's own clock


def read_job() -> Job:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bare", action="store_true", help="no warm-up and no clock")
    return Job(**vars(parser.parse_args()))


def measure(work: Callable[[Job], float | None], separable: bool) -> None:
    """Do the work and print what the calls took.

    One call is made before the clock runs. Where every run starts processes or an interpreter anew
    (not `separable`), what that one call took is taken off; but where `work` gives seconds of its
    own, those are taken.
    """
    job = read_job()
    if job.bare:
        work(job)
        return
    start = _used_by(work, job.only_one())
    _forget(job.base_url)
    whole = _used_by(work, job)
    off = Used(0, 0, None) if separable else start
    seconds = whole.seconds - off.seconds if whole.told is None else whole.told
    figures = {
        "calls": job.calls,
        "seconds": round(seconds, 4),
        "processor_seconds": round(whole.processor_seconds - off.processor_seconds, 4),
        "peak_mb": _peak_megabytes(),
    }
    print(json.dumps(figures))


async def keep_in_flight(job: Job, ask: Callable[[str], Awaitable[str]]) -> None:
    """Ask every prompt, so many at a time; every answer must be a transcript."""
    waiting = iter(job.prompts)

    async def work() -> None:
        for prompt in waiting:
            check([await ask(prompt)], 1)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(job.in_flight, job.calls)):
            group.create_task(work())


def check(answers: Sequence[str], calls: int) -> None:
    """Raise unless there are as many transcripts as calls."""
    good = sum(answer.startswith("[Human]") for answer in answers)
    if good != calls:
        raise RuntimeError(f"{good} transcripts of {calls} calls")


def _used_by(work: Callable[[Job], float | None], job: Job) -> Used:
    job.folder.mkdir(parents=True, exist_ok=True)
    began, began_processor = time.perf_counter(), _processor_seconds()
    told = work(job)
    return Used(time.perf_counter() - began, _processor_seconds() - began_processor, told)


def _processor_seconds() -> float:
    """User and system time of this process and of the children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def _peak_megabytes() -> float:
    """The most memory that the largest process of the client held."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(used.ru_maxrss for used in both) / 1024, 1)  # KiB on Linux


def _forget(base_url: str) -> None:
    """Have the endpoint begin a new ledger."""
    ledger = base_url.removesuffix("/v1") + "/ledger"
    urllib.request.urlopen(urllib.request.Request(ledger, method="DELETE")).close()
