"""Tune adapters on a corpus: `adapter/` in PEFT's layout, with its manifest, receipt and log."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from selfchat.core.energy import EnergyMeter
from selfchat.core.errors import UsageError
from selfchat.core.files import content_hash, read_records, write_json
from selfchat.core.progress import Progress
from selfchat.core.records import Dialogue, Record, stable_id
from selfchat.core.rundir import versions
from selfchat.models.adapter import save_adapter
from selfchat.models.bases import (
    WeightKind,
    base_folder,
    best_device,
    chosen_weights,
    load_base,
    load_tokenizer,
)
from selfchat.models.lora import TARGET_MODULES, LoraConfig, add_lora
from selfchat.template.renderer import make_renderer
from selfchat.tune.checkpoint import FILE as CHECKPOINT
from selfchat.tune.checkpoint import checkpoint_weights
from selfchat.tune.examples import make_examples, refuse_unlearnable
from selfchat.tune.options import TuneOptions
from selfchat.tune.trainer import Trainer


class Tuned(Record):
    """The receipt of a run; losses in nats per trained token, energy in joules."""

    base: str
    format: str
    loss_on: str
    device: str
    weights: str
    rank: int
    alpha: float
    targets: str
    trainable_parameters: int
    dialogues: int
    shortened: int
    too_long: int
    epochs: int
    steps: int
    batch: int
    learning_rate: float
    max_length: int
    rng_seed: int
    tokens_seen: int
    tokens_trained: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    joules: float
    energy_method: str
    loss: float
    heldout_loss_before: float
    heldout_loss_after: float


def tune(
    options: TuneOptions, corpus: Path, out: Path, progress: Progress, must_resume: bool = False
) -> Tuned:
    """Tune on `corpus/train.jsonl`, watching `corpus/heldout.jsonl`.

    A checkpoint of this very run in `out` is taken up. It is left there: whoever called removes it
    once the end of the run is on record.

    Args:
        must_resume: fail where there is no such checkpoint.

    Raises:
        UsageError: the corpus or the base cannot be used; said before the first step.
        Interrupted: the checkpoint is written; the same call goes on.
    """
    device = best_device()
    fingerprint = stable_id(
        options.result_values(),
        content_hash(corpus / "train.jsonl"),
        content_hash(corpus / "heldout.jsonl"),
    )
    weights = _weights(options, device, out, fingerprint, progress, must_resume)
    renderer = make_renderer(load_tokenizer(options.base), options.format)
    train = make_examples(
        read_records(corpus / "train.jsonl", Dialogue),
        renderer,
        options.loss_on,
        options.max_length,
    )
    heldout = make_examples(
        read_records(corpus / "heldout.jsonl", Dialogue),
        renderer,
        options.loss_on,
        options.max_length,
    )
    refuse_unlearnable(train.kept, renderer)
    if not heldout.kept:
        raise UsageError(
            f"{corpus / 'heldout.jsonl'}: no dialogue of it fits: raise tune.max_length"
        )
    model = load_base(options.base, weights, device)
    config = LoraConfig(
        options.rank, options.alpha, options.dropout, TARGET_MODULES[options.targets]
    )
    add_lora(model, config, options.rng_seed)
    progress.say(_introduction(options, model, weights, device, len(train.kept), train.too_long))
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, train.kept, heldout.kept, options, out, fingerprint, weights)
    with EnergyMeter(gpu_ids(device)) as meter:
        trained = trainer.run(progress, lambda: meter.read().joules)
        energy_method = meter.read().method
    save_adapter(model, config, base_folder(options.base), out)
    receipt = Tuned(
        base=options.base,
        format=options.format,
        loss_on=options.loss_on,
        device=str(device),
        weights=weights,
        rank=options.rank,
        alpha=options.alpha,
        targets=options.targets,
        trainable_parameters=_trainable(model),
        dialogues=len(train.kept),
        shortened=train.shortened,
        too_long=train.too_long,
        epochs=options.epochs,
        steps=trained.at.step,
        batch=options.batch,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        rng_seed=options.rng_seed,
        tokens_seen=trained.at.tokens_seen,
        tokens_trained=trained.at.tokens_trained,
        seconds=round(trained.at.seconds, 2),
        tokens_per_second=round(trained.at.tokens_seen / trained.at.seconds, 1),
        peak_memory_bytes=peak_memory_bytes(device),
        joules=round(trained.at.joules, 1),
        energy_method=energy_method,
        loss=trained.loss,
        heldout_loss_before=trained.heldout_before,
        heldout_loss_after=trained.heldout_after,
    )
    write_json(out / "receipt.json", receipt.model_dump())
    write_json(
        out / "manifest.json",
        {
            "base": options.base,
            "format": options.format,
            "loss_on": options.loss_on,
            "max_length": options.max_length,
            "corpus": content_hash(corpus / "train.jsonl"),
            "versions": versions(),
        },
    )
    return receipt


def _weights(
    options: TuneOptions,
    device: torch.device,
    out: Path,
    fingerprint: str,
    progress: Progress,
    must_resume: bool,
) -> WeightKind:
    """How the base is held: as in the checkpoint that is taken up, so that it goes on alike."""
    kept = checkpoint_weights(out, fingerprint)
    if kept is not None:
        return kept
    if must_resume:
        raise UsageError(f"{out}: no checkpoint of this corpus and these options to resume from")
    if (out / CHECKPOINT).exists():
        progress.say(
            "tune: the checkpoint here is of other options or another corpus: starting anew"
        )
    return chosen_weights(options.weights, device)


def _introduction(
    options: TuneOptions, model: Any, weights: str, device: torch.device, count: int, too_long: int
) -> str:
    left_out = f", {too_long} too long" if too_long else ""
    return (
        f"tune: {options.base} in {weights} on {device}, {_trainable(model):,} trainable "
        f"parameters, {count} dialogues{left_out}"
    )


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def gpu_ids(device: torch.device) -> list[str]:
    """NVML's names of the graphics cards that this process works on."""
    if device.type != "cuda":
        return []
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"]


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU if that is where it works."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
