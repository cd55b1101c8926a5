"""`--check`, a minute before a night: data, zero-shot accuracy, time and memory of a run, and what it changes in its
recipe. Nothing is left behind, and nothing has to be there but what the run itself needs.

The run begins in a temporary folder, with its own trainer, data and loop. An epoch and an evaluation go through a few
real batches, twice: to warm up, and to be timed. The batches left out, and the views that the feature bank lacks, are
added at the pace of what ran.
"""

import functools
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, cosine_logits, is_clip, text_classifier
from dassl.clip.feature_bank import FeatureBank
from dassl.config import with_values
from dassl.data.data_manager import DatasetWrapper, image_reading
from dassl.data.datasets import unreadable
from dassl.data.shards import loader_like
from dassl.report.protocols.against import Published, load_published
from dassl.utils import UserError, get_logger
from dassl.utils.logger import quiet
from dassl.utils.memory import available_mb, peak_mb

from .base import dataset_of
from .build import published_files
from .launch import backend, build_run, load_trained
from .lint import lint
from .others import asked, other_data, other_sets
from .results import FILE as RESULTS
from .signals import sigterm_ends
from .state import stop_workers
from .trainer import EpochTrainer, SimpleTrainer

log = get_logger()

OPENED = 200  # images decoded to see whether they can be
SECONDS = 40.0  # that zero-shot CLIP is evaluated at most
STEPS, EVALUATED = 8, 3  # batches of an epoch and of an evaluation that are tried out
TRAINING, EVALUATION = ("train_loader_x", "train_loader_u"), ("val_loader", "test_loader")


def dry_run(
    cfg: CN, recipe: CN | None = None, *, evaluates: tuple[str, int | str | None] | None = None
) -> dict[str, Any]:
    """Check the run of a config, in this process -> what was measured, by name.

    recipe: the config of the yaml files alone, whose differences are listed. evaluates: (model folder, epoch or None)
    instead of a training.
    UserError: what the run should not start with; or what it would stop with itself: no data, no weights, no stage 1,
    bad config.
    """
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, RESULTS)):
        log.info(f'note: "{cfg.OUTPUT_DIR}" holds a finished run, which is only started again by --overwrite')
    for line in (lint(recipe, cfg) if recipe else []) or ["nothing changed"]:
        log.info(f"recipe: {line}")
    with sigterm_ends(), tempfile.TemporaryDirectory(prefix="dry-run-") as folder, backend(cfg):
        started = time.perf_counter()
        with quiet(logging.WARNING):
            trainer = build_run(with_values(cfg, {"OUTPUT_DIR": folder, "RESUME": "", "VERBOSE": False}))
        built_s = time.perf_counter() - started
        try:
            check_data(trainer)
            values = {} if dataset_of(trainer) is None else anchor(trainer)
            return values | estimate(trainer, evaluates, built_s, values.get("image_s", 0.0))
        finally:
            trainer.close_writer()
            stop_workers(trainer)


def problem(line: str) -> UserError:
    """Why the run should not start, to be raised."""
    log.info(f"PROBLEM: {line}")
    return UserError(f"--check found: {line}")


# the images


def check_data(trainer: SimpleTrainer) -> None:
    """The sizes of the data set, and what is wrong with its images."""
    cfg, dataset = trainer.cfg, dataset_of(trainer)
    if dataset is None:
        log.info("data: the trainer's own, not looked at")
        return
    lists = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test}
    counts = ", ".join(f"{len(items):,} {name}" for name, items in lists.items())
    tested = {item.label for item in dataset.test}
    without = [name for label, name in sorted(dataset.lab2cname.items()) if label not in tested]
    note = f"; no test image of {len(without)} classes ({without[0]}, ...)" if without else ""
    log.info(f"data: {cfg.DATASET.NAME}, {dataset.num_classes:,} classes, {counts} images{note}")
    for line in getattr(dataset, "unpublished", list)():
        log.info(f"data: not as published: {line}")
    items = list({item.impath: item for items in lists.values() for item in items}.values())
    opened = items[:: max(1, len(items) // OPENED)]
    if broken := unreadable(opened, **image_reading(cfg)):
        raise problem(f"{len(broken)} of the {len(opened)} images opened cannot be read; the first: {broken[0]}")


# zero-shot accuracy beside the published one: are weights, templates, class names and transform as they should be?


@torch.no_grad()
def anchor(trainer: SimpleTrainer) -> dict[str, float]:
    """Zero-shot accuracy on as many test images as SECONDS suffice for, drawn evenly, the same ones first -> anchor (in
    percent), anchor_seen (images), image_s (seconds of one)."""
    cfg, dataset, precision, loader = trainer.cfg, dataset_of(trainer), trainer.precision, trainer.test_loader
    if not is_clip(cfg.MODEL.BACKBONE.NAME):
        log.info(f"anchor: none, {cfg.MODEL.BACKBONE.NAME or 'no backbone'} is no CLIP")
        return {}
    half = "fp16" if precision.dtype == torch.float16 else "fp32"
    clip = build_clip_from_cfg(cfg, half, device=precision.device, cached=True)
    template = getattr(dataset, "templates", {}).get("coop") or getattr(dataset, "template", "a photo of a {}.")
    text = text_classifier(clip, dataset.classnames, getattr(dataset, "prompts", None) or [template]).float()
    order = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(0)).split(loader.batch_size)
    right = seen = 0
    started = time.perf_counter()
    for batch in loader_like(loader, [rows.tolist() for rows in order]):
        with precision.autocast():
            features = clip.encode_image(batch["img"].to(clip.device))
        logits = cosine_logits(features.float(), text, clip.logit_scale.float())
        right += int((logits.argmax(dim=-1).cpu() == batch["label"]).sum())
        seen += len(logits)
        if time.perf_counter() - started > SECONDS:
            break
    image_s = (time.perf_counter() - started) / seen
    compare_anchor(cfg, right, seen, len(dataset.test))
    return {"anchor": 100 * right / seen, "anchor_seen": seen, "image_s": image_s}


def compare_anchor(cfg: CN, right: int, seen: int, count: int) -> None:
    """Say the accuracy; a problem where the published one is out of the band around its interval."""
    low = high = accuracy = 100 * right / seen
    words = f"anchor: zero-shot {accuracy:.2f} on all {count:,} test images"
    if seen < count:
        from scipy.stats import binomtest  # a second of start-up, so not at import

        low, high = (100 * bound for bound in binomtest(right, seen).proportion_ci(method="wilson"))
        words = f"anchor: zero-shot {accuracy:.2f} on {seen:,} of {count:,} test images"
        words += f" (95 %: {low:.1f} to {high:.1f})"
    published = published_zero_shot(cfg)
    beside = "nothing published for this data set, classes and backbone"
    if published:
        beside = f"published {published.value:.2f} ({published.source})"
    log.info(f"{words}; {beside}")
    band = published.band(cfg.DATASET.NAME) if published else 0.0
    if published and not low - band <= published.value <= high + band:
        raise problem(
            f"the zero-shot anchor is {accuracy:.2f}, published is {published.value:.2f}: look at weights, templates, "
            "class names and the images' transform before training"
        )


def published_zero_shot(cfg: CN) -> Published | None:
    """Published zero-shot accuracy of the data set, classes and backbone; None if there is none."""
    key = ("ZeroshotCLIP", "", cfg.MODEL.BACKBONE.NAME, cfg.DATASET.NAME)
    table, subset = load_published(published_files()), cfg.DATASET.SUBSAMPLE_CLASSES
    keys = [(name, *key, "") for name in ("cross", "dg", "mtil")] if subset == "all" else [("base2new", *key, subset)]
    return next((number for key in keys for number in table.get(key, [])), None)


# time and memory


class FirstBatches:
    """The first batches of a loader, and two more a worker, which reads that far ahead.

    times: what each took, with what was done with it.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count + 2 * loader.num_workers
        self.times: list[float] = []

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator:
        last = time.perf_counter()
        for batch in itertools.islice(self.loader, self.count):
            yield batch
            last, before = time.perf_counter(), last
            self.times.append(last - before)

    @property
    def left_out(self) -> float:
        """Seconds of the batches that were left out of a pass, if there was one, at the pace after the first ones."""
        pace = mean(self.times[1 + self.loader.num_workers :] or self.times or [0.0])
        return max(0, len(self.loader) - len(self.times)) * pace


def first_batches(trainer: SimpleTrainer, names: Iterable[str], count: int) -> list[FirstBatches]:
    """Let the loaders of these names, as far as a trainer has them, end after `count` batches."""
    names = [name for name in names if getattr(trainer, name, None) is not None]
    for name in names:
        setattr(trainer, name, FirstBatches(getattr(trainer, name), count))
    return [getattr(trainer, name) for name in names]


def timed(loaders: Sequence[FirstBatches], *functions: Callable) -> float:
    """Seconds of calls that go through these loaders, the second time, with the batches that are left out."""
    for _ in range(2):
        for loader in loaders:
            loader.times.clear()
        started = time.perf_counter()
        for function in functions:
            function()
    return time.perf_counter() - started + sum(loader.left_out for loader in loaders)


def time_run(trainer: SimpleTrainer, evaluates: tuple | None) -> tuple[dict[str, float], int]:
    """({phase: seconds} of the whole run, batches of its training), by the beginning of everything. Raises what the run
    would raise."""
    phases, steps, started = {}, 0, time.perf_counter()
    if evaluates:
        load_trained(trainer, *evaluates)
    else:
        trainer.before_train()
        trainer._progress.begin()
    phases["start"] = time.perf_counter() - started
    training = first_batches(trainer, TRAINING, max(STEPS, trainer.cfg.TRAIN.ACCUMULATE))
    evaluation = first_batches(trainer, EVALUATION, EVALUATED)
    epochs = range(trainer.start_epoch, 0 if evaluates else trainer.max_epoch)
    if epochs:
        trainer.epoch = epochs[0]
        batch_s = timed(training[:1], trainer.before_epoch, trainer.run_epoch) / len(training[0].loader)
        end_s = timed(evaluation, trainer.after_epoch, trainer._progress.save)
        steps = count_batches(trainer, training, epochs)
        phases |= {"steps": steps * batch_s, "ends of epochs": len(epochs) * end_s}
    if evaluates or not trainer.cfg.TEST.NO_TEST:
        phases["test"] = timed(evaluation, trainer.test)
    if evaluates and asked(trainer.cfg):  # at the pace of its own test
        images = sum(len(other_data(cfg).dataset.test) for cfg in other_sets(trainer.cfg).values())
        phases["others"] = phases["test"] * images / len(dataset_of(trainer).test)
    return phases, steps


def count_batches(trainer: SimpleTrainer, training: Sequence[FirstBatches], epochs: Iterable[int]) -> int:
    """How many these epochs have, with nothing left out."""
    batches = 0
    for loader in training:
        loader.count = sys.maxsize
    for trainer.epoch in epochs:
        if isinstance(trainer, EpochTrainer):
            trainer.epoch_batches()  # which sets num_batches
        batches += getattr(trainer, "num_batches", None) or len(training[0])
    return batches


def sample_bank(banks: dict[str, tuple[int, float]], bank: FeatureBank, numbers: Sequence[int]) -> None:
    """Rows of one batch, over and over, for the rounds that a bank lacks. banks: {folder: (images that go into it, MiB
    of them)}, added to."""
    count = len(bank.pixels)
    (images,) = bank.images([(torch.arange(count)[: bank.batch_size], numbers[:1])])
    rows = {name: value[torch.arange(count) % len(value)] for name, value in bank._encode(images).items()}
    bank._rounds |= dict.fromkeys(numbers, rows)
    size = sum(value.nbytes for value in rows.values()) / 2**20
    banks[str(bank.folder)] = count * len(numbers), size * len(numbers)


def estimate(trainer: SimpleTrainer, evaluates: tuple | None, built_s: float, image_s: float) -> dict[str, Any]:
    """What the run will take, from its beginning -> seconds, steps, peak_mb, phases.

    built_s: seconds until now; image_s: that encoding an image takes.
    """
    banks: dict[str, tuple[int, float]] = {}
    for data in (getattr(getattr(trainer, name, None), "dataset", None) for name in TRAINING + EVALUATION):
        if isinstance(data, DatasetWrapper):
            data.sample_bank = functools.partial(sample_bank, banks)
    try:
        with quiet(logging.WARNING):
            phases, steps = time_run(trainer, evaluates)
    except torch.OutOfMemoryError as error:
        what = f"the GPU's memory is too small for this batch size and model ({str(error).splitlines()[0]})"
        raise problem(f"{what}. {less_memory(trainer.cfg)}") from error
    phases["start"] += built_s
    images, size = (sum(numbers) for numbers in zip(*banks.values(), strict=True)) if banks else (0, 0.0)
    if images:
        phases["features"] = images * image_s
    seconds, peak = sum(phases.values()), peak_mb(trainer.device)
    parts = [f"{name} {clock(value)}" for name, value in phases.items() if value >= 0.05]
    words = f"{steps:,} steps of {1000 * phases['steps'] / steps:.0f} ms; " if steps else ""
    log.info(f"estimate: {clock(seconds)} ({', '.join(parts)}); {words}peak memory {peak:,.0f} MiB")
    if peak > (there := available_mb(trainer.device)):
        log.info(f"note: {there:,.0f} MiB are there. {less_memory(trainer.cfg)}")
    if images:
        log.info(f"feature bank: {images:,} images to encode, {size:,.1f} MiB on disk")
    return {"seconds": seconds, "steps": steps, "peak_mb": peak, "phases": phases}


def less_memory(cfg: CN) -> str:
    """What to set for less memory, of what is not set."""
    ways = [
        "TRAIN.ACCUMULATE with a smaller batch",
        *([] if cfg.MODEL.TEXT_CHUNK else ["MODEL.TEXT_CHUNK 100 for many classes"]),
        *([] if cfg.MODEL.CHECKPOINT_BLOCKS else ["MODEL.CHECKPOINT_BLOCKS True where towers carry gradients"]),
    ]
    return f"Less memory for the same steps: {', '.join(ways)}"


def clock(seconds: float) -> str:
    """Seconds in words: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
