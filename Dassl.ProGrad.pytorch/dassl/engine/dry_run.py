"""`--check`, a minute before a night: data, zero-shot accuracy, time and memory of a run, and what it changes in its
recipe. Nothing is left behind, and nothing has to be there but what the run itself needs.

The run begins in a temporary folder, with its own trainer, data and loop. An epoch and an evaluation go through a few
real batches, twice: to warm up, and to be timed. The batches left out, and the views that the feature bank lacks, are
added at the pace of what ran.
"""

import contextlib
import itertools
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean

import torch
from yacs.config import CfgNode as CN

from dassl.clip.feature_bank import FeatureBank
from dassl.config import with_values
from dassl.data.data_manager import DatasetWrapper, image_reading
from dassl.data.datasets import DatasetBase, Datum, unreadable
from dassl.utils import UserError, get_logger
from dassl.utils.distributed import world_size
from dassl.utils.logger import quiet
from dassl.utils.memory import available_mb, peak_mb

from .anchor import anchor
from .launch import backend, build_run, load_trained
from .others import asked, other_data, other_sets
from .precision import Precision
from .results import FILE as RESULTS
from .signals import sigterm_ends
from .state import stop_workers

OPENED = 200  # images decoded to see whether they can be
STEPS, EVALUATED = 8, 3  # batches of an epoch and of an evaluation
TRAINING, EVALUATION = ("train_loader_x", "train_loader_u"), ("val_loader", "test_loader")


class Findings:
    """What a check found, logged as it comes. problems: why the run should not start; values: numbers by name."""

    def __init__(self):
        self.problems, self.values = [], {}

    def say(self, line: str, **values) -> None:
        self.values |= values
        get_logger().info(line)

    def problem(self, line: str) -> None:
        self.problems.append(line)
        self.say(f"PROBLEM: {line}")


def dry_run(cfg: CN, *, evaluates=None, recipe: Iterable[str] = (), data_check: Callable | None = None) -> Findings:
    """Check the run of a config.

    evaluates: (model folder, epoch or None) instead of a training. recipe: lines on what differs from it. data_check: a
    function of cfg that looks at the data set -> lines.

    Raises:
        UserError: what the run itself would stop with: no data, no weights, no stage 1, bad config.
    """
    if world_size() > 1:
        raise UserError("--check runs in one process; its estimate is that of one process")
    findings = Findings()
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, RESULTS)):
        findings.say(f'note: "{cfg.OUTPUT_DIR}" holds a finished run, which is only started again by --overwrite')
    with sigterm_ends(), tempfile.TemporaryDirectory(prefix="preflight-") as folder, begun(cfg, folder) as run:
        dataset = getattr(getattr(run.trainer, "dm", None), "dataset", None)
        if dataset is None:
            findings.say("data: the trainer's own, not looked at")
        else:
            check_data(cfg, dataset, run.trainer.precision, findings, data_check)
        if not findings.problems:
            estimate(run, evaluates, findings)
    for line in recipe or ["nothing changed"]:
        findings.say(f"recipe: {line}")
    return findings


# the images


def check_data(
    cfg: CN, dataset: DatasetBase, precision: Precision, findings: Findings, data_check: Callable | None, **limit
) -> None:
    """The sizes of the data set, what is wrong with its images, and the zero-shot accuracy. limit: of `anchor`."""
    lists = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test}
    counts = ", ".join(f"{len(items):,} {name}" for name, items in lists.items())
    tested = {item.label for item in dataset.test}
    without = [name for label, name in sorted(dataset.lab2cname.items()) if label not in tested]
    note = f"; no test image of {len(without)} classes ({without[0]}, ...)" if without else ""
    findings.say(f"data: {cfg.DATASET.NAME}, {dataset.num_classes:,} classes, {counts} images{note}")
    check_images([item for items in lists.values() for item in items], findings, **image_reading(cfg))
    for line in data_check(cfg) if data_check else ():
        findings.say(f"data: {line}")
    if not findings.problems:
        anchor(cfg, dataset, precision, findings, **limit)


def check_images(items: Iterable[Datum], findings: Findings, **reading) -> None:
    """Every file is there; OPENED of them, evenly spaced, can be decoded. reading: as of Datum.load_image."""
    items = list({item.impath: item for item in items}.values())
    missing = {item.impath: item.file for item in items if not os.path.isfile(item.file)}
    if missing:
        first = next(iter(missing.values()))
        findings.problem(f"{len(missing):,} of {len(items):,} images are not there, the first is {first}")
    opened = [item for item in items[:: max(1, len(items) // OPENED)] if item.impath not in missing]
    if broken := unreadable(opened, **reading):
        findings.problem(f"{len(broken)} of the {len(opened)} images opened cannot be read; the first: {broken[0]}")
    findings.values |= {"pictures": len(items), "missing": len(missing), "opened": len(opened), "broken": len(broken)}


# time and memory


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class FirstBatches:
    """The first batches of a loader, and two more a worker, which reads that far ahead.

    times: what each took, with what was done with it.
    """

    def __init__(self, loader, count: int, device: torch.device):
        self.loader = loader.loader if isinstance(loader, FirstBatches) else loader
        self.device, self.times = device, []
        self.count = count + 2 * loader.num_workers

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator:
        last = now(self.device)
        for batch in itertools.islice(self.loader, self.count):
            yield batch
            last, before = now(self.device), last
            self.times.append(last - before)

    @property
    def pace(self) -> float:
        """Seconds of a batch, after the first ones."""
        return mean(self.times[1 + self.loader.num_workers :] or self.times or [0.0])


@contextlib.contextmanager
def begun(cfg: CN, folder: str, known: set | None = None) -> Iterator["DryRun"]:
    """A DryRun of a config in another folder. known: folders of banks that count as filled, added to."""
    os.makedirs(folder, exist_ok=True)
    cfg = with_values(cfg, {"OUTPUT_DIR": folder, "RESUME": "", "VERBOSE": False})
    with backend(cfg):
        run = DryRun(cfg, set() if known is None else known)
        try:
            yield run
        finally:
            run.trainer.close_writer()
            stop_workers(run.trainer)


class DryRun:
    """A trainer that has been built as a run would build it, and what came of timing it.

    phases: {name: seconds} of the whole run. steps: batches of the training. images: that go into banks, bank_mb MiB
    of them. others: {data set: test images} that TEST.OTHERS takes. peak_mb: MiB.
    """

    def __init__(self, cfg: CN, known: set):
        self.cfg, self.known, self.phases, self.others = cfg, known, Counter(), {}
        self.steps, self.images, self.bank_mb, self.peak_mb = 0, 0, 0.0, 0.0
        started = time.perf_counter()
        with quiet(logging.WARNING):
            self.trainer = build_run(cfg)
        self.phases["start"] = time.perf_counter() - started
        for name in TRAINING + EVALUATION:
            data = getattr(getattr(self.trainer, name, None), "dataset", None)
            if isinstance(data, DatasetWrapper):
                data.sample_bank = self.sample_bank

    def time(self, evaluates=None, image_s: float = 0.0) -> None:
        """The beginning of everything, and what all of it will take. Raises what the run would raise.

        image_s: seconds that encoding an image takes.
        """
        trainer = self.trainer
        with quiet(logging.WARNING):
            started = time.perf_counter()
            if evaluates:
                load_trained(trainer, *evaluates)
            else:
                trainer.before_train()
                trainer.start_progress()
            self.phases["start"] += time.perf_counter() - started
            if not evaluates and trainer.start_epoch < trainer.max_epoch:
                self.train()
            if evaluates or not trainer.cfg.TEST.NO_TEST:
                self.phases["test"] += self.evaluate(trainer.test)
            if evaluates and asked(trainer.cfg):  # at the pace of its own test
                sets = other_sets(trainer.cfg)
                self.others = {name: len(other_data(cfg).dataset.test) for name, cfg in sets.items()}
                self.phases["others"] = self.phases["test"] * sum(self.others.values()) / len(trainer.dm.dataset.test)
        if self.images:
            self.phases["features"] = self.images * image_s
        self.peak_mb = peak_mb(trainer.device)

    def timed(self, names: Iterable[str], count: int, *functions: Callable) -> tuple[float, list[FirstBatches]]:
        """(seconds, loaders) of calls on a few batches of these loaders, the second time."""
        trainer, few = self.trainer, []
        for name in names:
            if (loader := getattr(trainer, name, None)) is not None:
                few.append(FirstBatches(loader, count, trainer.device))
                setattr(trainer, name, few[-1])
        for _ in range(2):
            for loader in few:
                loader.times.clear()
            started = now(trainer.device)
            for function in functions:
                function()
        return now(trainer.device) - started, few

    def train(self) -> None:
        """An epoch and its end; then all of them at that pace."""
        trainer = self.trainer
        epochs = range(trainer.start_epoch, trainer.max_epoch)
        trainer.epoch = epochs[0]
        count = max(STEPS, trainer.cfg.TRAIN.ACCUMULATE)
        with warnings.catch_warnings():  # a warm-up's scheduler takes the first epoch once
            warnings.filterwarnings("ignore", "No scheduler was stepped")
            seconds, few = self.timed(TRAINING, count, trainer.before_epoch, trainer.run_epoch)
        end = self.evaluate(trainer.after_epoch, trainer.save_progress)
        for loader in few:
            loader.count = sys.maxsize  # for their lengths alone
        batches = []
        for trainer.epoch in epochs:
            if callable(getattr(trainer, "epoch_batches", None)):  # which sets num_batches
                trainer.epoch_batches()
            batches.append(getattr(trainer, "num_batches", None) or len(few[0]))
        self.steps = sum(batches)
        step = (seconds + max(0, batches[0] - len(few[0].times)) * few[0].pace) / batches[0]
        self.phases["steps"] = self.steps * step
        self.phases["ends of epochs"] = len(epochs) * end

    def evaluate(self, *functions: Callable) -> float:
        """Seconds of calls that may evaluate, with the batches that are left out."""
        seconds, few = self.timed(EVALUATION, EVALUATED, *functions)
        return seconds + sum((len(some.loader) - len(some.times)) * some.pace for some in few if some.times)

    def sample_bank(self, bank: FeatureBank, numbers: Sequence[int]) -> None:
        """Rows of one batch, over and over, for the rounds that a bank lacks."""
        count = len(bank.pixels)
        (images,) = bank.loader(numbers[:1], torch.arange(count).split(bank.batch_size)[:1])
        rows = {name: value[torch.arange(count) % len(value)] for name, value in bank._encode(images).items()}
        bank._rounds |= dict.fromkeys(numbers, rows)
        if bank.folder not in self.known:
            self.known.add(bank.folder)
            self.images += count * len(numbers)
            self.bank_mb += sum(value.nbytes for value in rows.values()) * len(numbers) / 2**20


def estimate(run: DryRun, evaluates, findings: Findings) -> None:
    """What the run will take, from its beginning."""
    try:
        run.time(evaluates, findings.values.get("image_s", 0.0))
    except torch.OutOfMemoryError as error:
        findings.problem(f"the GPU's memory is too small for this batch size and model ({str(error).splitlines()[0]})")
        findings.say(less_memory(run.cfg))
        return
    phases, seconds = dict(run.phases), run.phases.total()
    parts = [f"{name} {clock(value)}" for name, value in phases.items() if value >= 0.05]
    steps = f"{run.steps:,} steps of {1000 * phases['steps'] / run.steps:.0f} ms; " if run.steps else ""
    line = f"estimate: {clock(seconds)} ({', '.join(parts)}); {steps}peak memory {run.peak_mb:,.0f} MiB"
    findings.say(line, seconds=seconds, steps=run.steps, peak_mb=run.peak_mb, phases=phases)
    if run.others:
        findings.say(others_line(run.others, phases["others"]))
    if run.peak_mb > (there := available_mb(run.trainer.device)):
        findings.say(f"note: {there:,.0f} MiB are there. {less_memory(run.cfg)}")
    if run.images:
        findings.say(f"feature bank: {run.images:,} images to encode, {run.bank_mb:,.1f} MiB on disk")


def others_line(others: dict[str, int], seconds: float) -> str:
    """What scoring other data sets takes. others: {data set: test images}."""
    return f"others: {clock(seconds)} of it, for {sum(others.values()):,} test images of {', '.join(others)}"


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
