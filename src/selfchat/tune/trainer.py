"""The training loop: a step is exactly `batch` dialogues, however it is cut into micro-batches."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from selfchat.core.errors import Interrupted, SelfchatError
from selfchat.core.files import write_text
from selfchat.core.progress import Bar, Progress
from selfchat.models.likelihood import micro_batches, summed_loss
from selfchat.template.renderer import Example
from selfchat.tune.checkpoint import Progressed, load_checkpoint, save_checkpoint
from selfchat.tune.options import TuneOptions

LOG = "log.jsonl"


class Trained(NamedTuple):
    """What a finished run was; losses in nats per trained token."""

    at: Progressed
    loss: float  # of the last step
    heldout_before: float
    heldout_after: float


class Trainer:
    """Tunes the adapters of `model` on `examples`, from the start or from a checkpoint."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        options: TuneOptions,
        folder: Path,
        fingerprint: str,
        weights: str,
    ) -> None:
        self._model, self._examples, self._heldout = model, examples, heldout
        self._options, self._folder = options, folder
        self._fingerprint, self._weights = fingerprint, weights
        self._parameters: list[nn.Parameter] = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        self._optimizer = torch.optim.Adam(self._parameters, lr=options.learning_rate)
        self._steps_an_epoch = math.ceil(len(examples) / options.batch)
        self._steps = self._steps_an_epoch * options.epochs
        self._log: list[dict[str, Any]] = []

    def run(self, progress: Progress, joules: Callable[[], float]) -> Trained:
        """Train to the end.

        Args:
            joules: the energy used since this session began.

        Raises:
            Interrupted: the user asked to stop; the checkpoint is written.
            SelfchatError: the loss is no number any more.
        """
        at = load_checkpoint(self._folder, self._parameters, self._optimizer, self._fingerprint)
        if at is None:
            at = Progressed(0, 0.0, 0.0, 0, 0)
            self._log_heldout(at, progress)
        else:
            self._log = self._read_log(at.step)
            progress.say(f"tune: going on after step {at.step} of {self._steps}")
        began, saved = time.monotonic() - at.seconds, time.monotonic()
        used = at.joules
        title = f"tune {self._options.epochs} epoch{'s' * (self._options.epochs > 1)}"
        with progress.bar(title, total=self._steps, done=at.step) as bar, _interruptions() as asked:
            while at.step < self._steps:
                at = self._step(at, began, bar)._replace(joules=used + joules())
                if at.step % self._steps_an_epoch == 0:
                    self._log_heldout(at, progress)
                due = time.monotonic() - saved > self._options.checkpoint_seconds
                if due or asked or at.step == self._steps:
                    self._save(at)
                    saved = time.monotonic()
                if asked:
                    raise Interrupted("interrupted; run the same command again to go on")
        heldout = [row["heldout_loss"] for row in self._log if "heldout_loss" in row]
        losses = [row["loss"] for row in self._log if "loss" in row]
        return Trained(at, losses[-1], heldout[0], heldout[-1])

    def _step(self, at: Progressed, began: float, bar: Bar) -> Progressed:
        """One optimizer step: the loss is averaged over all trained tokens of its dialogues."""
        epoch, place = divmod(at.step, self._steps_an_epoch)
        batch = self._batch(epoch, place)
        trained = sum(sum(example.loss_mask[1:]) for example in batch)
        rate = self._learning_rate(at.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(
            (self._options.rng_seed * 1_000_003 + at.step) % (1 << 63)
        )  # of the dropout
        self._model.train()
        total = 0.0
        for micro_batch in micro_batches(batch, self._options.micro_tokens):
            loss, _ = summed_loss(self._model, micro_batch)
            (loss / trained).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not math.isfinite(total):
            raise SelfchatError(
                f"step {at.step + 1}: the loss is {total}: lower tune.learning_rate; the last good "
                f"checkpoint is kept in {self._folder}"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - began
        done = Progressed(
            step=at.step + 1,
            seconds=seconds,
            joules=at.joules,
            tokens_seen=at.tokens_seen + sum(len(example.token_ids) for example in batch),
            tokens_trained=at.tokens_trained + trained,
        )
        self._log.append(
            {
                "step": done.step,
                "epoch": round(done.step / self._steps_an_epoch, 4),
                "loss": round(total / trained, 5),
                "learning_rate": rate,
                "tokens": done.tokens_seen,
                "seconds": round(seconds, 2),
            }
        )
        bar.advance(note=f"loss {total / trained:.3f} · {done.tokens_seen / seconds:.0f} tokens/s")
        return done

    def _batch(self, epoch: int, place: int) -> list[Example]:
        """The examples of one step: each epoch has an order of its own, from the recipe's seed."""
        generator = torch.Generator().manual_seed(
            (self._options.rng_seed * 7_919 + epoch) % (1 << 63)
        )
        order = torch.randperm(len(self._examples), generator=generator).tolist()
        start = place * self._options.batch
        return [self._examples[index] for index in order[start : start + self._options.batch]]

    def _learning_rate(self, step: int) -> float:
        """Rises over the warm-up, then falls linearly to zero after the last step."""
        highest, warmup = self._options.learning_rate, self._options.warmup
        if step < warmup:
            return highest * (step + 1) / (warmup + 1)
        return highest * (self._steps - step) / max(1, self._steps - warmup)

    def _log_heldout(self, at: Progressed, progress: Progress) -> None:
        self._model.eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for micro_batch in micro_batches(self._heldout, self._options.micro_tokens):
                loss, trained = summed_loss(self._model, micro_batch)
                total, count = total + float(loss), count + trained
        mean = total / count
        epoch = round(at.step / self._steps_an_epoch, 4)
        self._log.append({"step": at.step, "epoch": epoch, "heldout_loss": round(mean, 5)})
        progress.say(f"tune: held-out loss {mean:.4f} after {epoch:g} epochs")

    def _save(self, at: Progressed) -> None:
        lines = (json.dumps(row) + "\n" for row in self._log)
        write_text(self._folder / LOG, "".join(lines))
        save_checkpoint(
            self._folder, self._parameters, self._optimizer, at, self._fingerprint, self._weights
        )

    def _read_log(self, step: int) -> list[dict[str, Any]]:
        path = self._folder / LOG
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        return [row for row in rows if row["step"] <= step]


@contextmanager
def _interruptions() -> Iterator[list[bool]]:
    """A list that is filled by the first Ctrl-C; a second one interrupts at once."""
    asked: list[bool] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
