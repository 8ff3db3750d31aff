"""Collect a dialogue for every seed; what was answered before is never asked again."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from selfchat.calls.caller import Caller, Limits, Told
from selfchat.calls.journal import Journal
from selfchat.calls.prices import find_price
from selfchat.collect.options import CollectOptions
from selfchat.collect.strategies import Conversed, converse, prompt_version
from selfchat.core.errors import Interrupted, SelfchatError, UsageError
from selfchat.core.files import read_records, write_records
from selfchat.core.progress import Bar, Progress
from selfchat.core.records import (
    Dialogue,
    Provenance,
    Reason,
    Record,
    Rejection,
    Sampling,
    Seed,
    Usage,
    stable_id,
)
from selfchat.models.address import open_teacher
from selfchat.models.base import Model

DIALOGUES, PROVENANCE, REJECTIONS = "dialogues.jsonl", "provenance.jsonl", "rejections.jsonl"
JOURNAL = "journal.sqlite"


class Collected(Record):
    """The figures of a collection, of all its runs together."""

    seeds: int
    dialogues: int
    turns: int
    rejected: dict[str, int]
    calls: int
    ambiguous: int  # sent, and never known whether answered
    tokens: int
    dollars: float | None  # None where the price is unknown


class _Outcome(NamedTuple):
    seed: Seed
    conversed: Conversed


def collect(options: CollectOptions, seeds_path: Path, run: Path, progress: Progress) -> Collected:
    """Write `dialogues.jsonl`, `provenance.jsonl` and `rejections.jsonl`, in seed order.

    Raises:
        BudgetReached, Interrupted: what was collected so far is written; run again to go on.
        SelfchatError: no call can succeed.
    """
    by_id = {seed.id: seed for seed in read_records(seeds_path, Seed)}  # a seed is paid for once
    seeds = list(by_id.values())
    if not seeds:
        raise UsageError(f"{seeds_path}: no seeds in it")
    model = open_teacher(options.teacher, options.base_url, options.api_key_env, options.timeout)
    return asyncio.run(_collect(options, seeds, model, run, progress))


async def _collect(
    options: CollectOptions, seeds: Sequence[Seed], model: Model, run: Path, progress: Progress
) -> Collected:
    journal = Journal(run / JOURNAL)
    try:
        caller = _caller(options, model, journal)
        if caller.price is None:
            progress.say(f"the price of {options.teacher} is unknown: dollars are not counted")
        if caller.ambiguous:
            progress.say(f"{caller.ambiguous} calls were under way when an earlier run was killed")
        with progress.bar("collect", total=len(seeds)) as bar:
            outcomes, stopped = await _all(options, seeds, caller, bar)
        _write(outcomes, options, caller, run)
        if stopped is not None:
            raise stopped
        figures = _figures(seeds, outcomes, caller, journal)
        if lost := figures.rejected.get(Reason.GAVE_UP):
            progress.say(
                f"{lost} seeds got no answer after many attempts; to try them again: selfchat "
                f"collect --recipe {run / 'recipe.toml'} --seeds {run / 'seeds.jsonl'} --out {run}"
            )
        return figures
    finally:
        await model.close()
        journal.close()


def _caller(options: CollectOptions, model: Model, journal: Journal) -> Caller:
    limits = Limits(
        concurrency=options.concurrency,
        requests_per_minute=options.rpm,
        tokens_per_minute=options.tpm,
        max_tokens=options.max_tokens,
        max_cost=options.max_cost,
    )
    price = find_price(options.teacher, options.price_in, options.price_out)
    return Caller(model, journal, price, limits, prompt_version(options))


async def _all(
    options: CollectOptions, seeds: Sequence[Seed], caller: Caller, bar: Bar
) -> tuple[list[_Outcome], SelfchatError | None]:
    """Converse about every seed, `concurrency` at a time; give what is done and why it stopped.

    The first Ctrl-C lets calls under way come back and be kept; a second one stops at once.
    """
    done: dict[str, _Outcome] = {}
    waiting = iter(seeds)
    tally: Counter[str] = Counter()
    stopped: list[SelfchatError] = []

    async def work() -> None:
        for seed in waiting:
            if stopped:
                return
            try:
                conversed = await converse(seed, caller, options)
            except SelfchatError as error:
                stopped.append(error)
                caller.stop()
                return
            done[seed.id] = _Outcome(seed, conversed)
            tally["rejected" if conversed.reason else "accepted"] += 1
            bar.advance(note=_note(tally, caller))

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stopped.append(Interrupted("interrupted; run the same command again to go on"))
        caller.stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(options.concurrency, len(seeds))):
                group.create_task(work())
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    in_order = [done[seed.id] for seed in seeds if seed.id in done]
    return in_order, stopped[0] if stopped else None


def _note(tally: Counter[str], caller: Caller) -> str:
    money = f" · ${caller.spent_dollars:.4f}" if caller.spent_dollars else ""
    return (
        f"{tally['accepted']} accepted, {tally['rejected']} rejected · "
        f"{caller.spent_tokens:,} tokens{money}"
    )


def _write(
    outcomes: Sequence[_Outcome], options: CollectOptions, caller: Caller, run: Path
) -> None:
    dialogues, provenances, rejections = [], [], []
    for seed, conversed in outcomes:
        if conversed.reason is not None:
            rejections.append(
                Rejection(
                    id=stable_id(seed.id, "collect"),
                    seed_id=seed.id,
                    source=seed.source,
                    step="collect",
                    reason=conversed.reason,
                    detail=conversed.detail,
                )
            )
            continue
        dialogue = Dialogue.make(seed.id, conversed.messages, seed.source)
        dialogues.append(dialogue)
        provenances.append(_provenance(dialogue, conversed.told, options, caller))
    write_records(run / DIALOGUES, dialogues)
    write_records(run / PROVENANCE, provenances)
    write_records(run / REJECTIONS, rejections)


def _provenance(
    dialogue: Dialogue, told: Sequence[Told], options: CollectOptions, caller: Caller
) -> Provenance:
    prices = [call.price for call in told if call.price is not None]
    return Provenance(
        id=dialogue.id,
        seed_id=dialogue.seed_id,
        model=options.teacher,
        model_returned=told[-1].reply.model,
        provider=caller.model.provider,
        strategy=options.strategy,
        prompt_version=prompt_version(options),
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.longest_answer,
        ),
        request_ids=tuple(call.reply.request_id for call in told if call.reply.request_id),
        usage=sum((call.reply.usage for call in told if call.reply.usage), Usage()),
        price=sum(prices) if prices else None,
        seconds=round(sum(call.seconds for call in told), 3),
        finished=max(call.finished for call in told),
    )


def _figures(
    seeds: Sequence[Seed], outcomes: Sequence[_Outcome], caller: Caller, journal: Journal
) -> Collected:
    spent = journal.spent()
    rejected = Counter(
        str(outcome.conversed.reason) for outcome in outcomes if outcome.conversed.reason
    )
    return Collected(
        seeds=len(seeds),
        dialogues=len(outcomes) - rejected.total(),
        turns=sum(len(outcome.conversed.messages) // 2 for outcome in outcomes),
        rejected=dict(sorted(rejected.items())),
        calls=spent.answered,
        ambiguous=spent.ambiguous,
        tokens=spent.tokens,
        dollars=None if caller.price is None else round(spent.dollars, 6),
    )
