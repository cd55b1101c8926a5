"""The beginning of a run, to tell what all of it will take: its own trainer, data and loop, in another folder.

An epoch and an evaluation go through a few real batches, twice: to warm up, and to be timed. The batches left out, and
the rounds that the feature bank lacks, are added at the pace of what ran.
"""

import contextlib
import io
import itertools
import logging.handlers
import os
import sys
import time
import warnings
from statistics import mean

import torch

from dassl.clip.feature_bank import SAMPLED
from dassl.data.wrapper import DatasetWrapper
from dassl.utils import get_logger
from dassl.utils.memory import peak_mb

from .launch import backend, build_run, load_trained
from .others import asked, other_data, other_sets
from .results import write_results
from .state import stop_workers

STEPS, EVALUATED = 8, 3  # batches of an epoch and of an evaluation, and two more a worker, which reads that far ahead
OTHERS = ("others", "others' features")  # phases: every evaluation's, and once for all
TRAINING, EVALUATION = ("train_loader_x", "train_loader_u"), ("val_loader", "test_loader")


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Few:
    """The first batches of a loader. times: what each took, with what was done with it."""

    def __init__(self, loader, count, device):
        self.loader = loader.loader if isinstance(loader, Few) else loader
        self.count, self.device, self.times = count + 2 * loader.num_workers, device, []

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return min(self.count, len(self.loader))

    def __iter__(self):
        last = now(self.device)
        for batch in itertools.islice(self.loader, self.count):
            yield batch
            last, before = now(self.device), last
            self.times.append(last - before)

    @property
    def pace(self):
        """Seconds of a batch, after the first ones."""
        return mean(self.times[1 + self.loader.num_workers :] or self.times or [0.0])


@contextlib.contextmanager
def trial(cfg, folder, known=None):
    """The Trial of a config in another folder. known: {(bank, round): rows} that have been counted, added to."""
    os.makedirs(folder, exist_ok=True)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.RESUME, cfg.VERBOSE = folder, "", False
    cfg.freeze()
    with backend(cfg):
        made = Trial(cfg, {} if known is None else known)
        try:
            yield made
        finally:
            made.trainer.close_writer()
            stop_workers(made.trainer)


class Trial:
    """A trainer that has been built as a run would build it, and what came of timing it.

    phases: {name: seconds} of the whole run. steps: batches of the training, of `step` seconds. pictures: that go into
    the bank, bank_bytes on disk in bank_folder. others: test images of each set that TEST.OTHERS takes. peak_mb: MiB.
    warnings: what the run's own log would warn of.
    """

    def __init__(self, cfg, known):
        self.phases, self.warnings, self.steps, self.step, self.peak_mb = {}, [], 0, 0.0, 0.0
        self.pictures, self.bank_bytes, self.bank_folder, self.known, self.sampling = 0, 0, None, known, 0.0
        self.others = {}
        self.cfg, started = cfg, time.perf_counter()
        with self.quiet():
            self.trainer = build_run(cfg)
        self.add("start", time.perf_counter() - started)
        self.dataset = getattr(getattr(self.trainer, "dm", None), "dataset", None)
        for loader in self.loaders(TRAINING + EVALUATION).values():
            if isinstance(loader.dataset, DatasetWrapper):
                SAMPLED[loader.dataset] = self.sample_bank

    @property
    def seconds(self):
        return sum(self.phases.values())

    def loaders(self, names):
        """{name: loader} of those that the trainer has."""
        loaders = {name: getattr(self.trainer, name, None) for name in names}
        return {name: loader for name, loader in loaders.items() if loader is not None}

    def add(self, phase, seconds):
        self.phases[phase] = self.phases.get(phase, 0.0) + max(0.0, seconds)

    @contextlib.contextmanager
    def quiet(self):
        """What is printed is not seen; what it warns of is kept."""
        handler = logging.handlers.MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        get_logger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as caught:
                yield
        finally:
            get_logger().removeHandler(handler)
            logged = [(record.levelno, record.getMessage()) for record in handler.buffer]
            texts = [text for level, text in logged if level >= logging.WARNING or text.startswith("Warning")]
            texts += [str(each.message) for each in caught if each.category is UserWarning]
            self.warnings += [" ".join(text.removeprefix("Warning:").split()) for text in texts]

    def run(self, evaluates=None):
        """The beginning of everything, and what all of it will take. Raises what the run would raise.

        evaluates: (model folder, epoch or None) of a run that trains nothing.
        """
        trainer = self.trainer
        with self.quiet():
            started = time.perf_counter()
            if evaluates:
                load_trained(trainer, *evaluates)
            else:
                trainer.before_train()
                trainer.start_progress()
            self.add("start", time.perf_counter() - started - self.sampling)
            if not evaluates and trainer.start_epoch < trainer.max_epoch:
                self.train()
            if evaluates or not trainer.cfg.TEST.NO_TEST:
                self.add("test", self.evaluate(trainer.test))
            if evaluates and asked(trainer.cfg):  # at the pace of its own test
                sets = other_sets(trainer.cfg)
                self.others = {name: len(other_data(cfg).dataset.test) for name, cfg in sets.items()}
                share = sum(self.others.values()) / len(self.dataset.test)
                for phase, own in zip(OTHERS, ("test", "test features"), strict=True):
                    self.add(phase, share * self.phases.get(own, 0.0))
            if besides := 0 if evaluates else trainer.pictures_besides():
                self.add("pictures after training", besides * trainer.test_loader.pace / trainer.test_loader.batch_size)
        self.peak_mb += peak_mb(trainer.device)

    def leave_results(self):
        """Leave what a finished run leaves, for a trial that goes on from it; the weights are those of a few steps."""
        trainer = self.trainer
        with self.quiet():
            trainer.save_model(trainer.max_epoch - 1, trainer.output_dir)
            write_results(trainer.output_dir, trainer, self.cfg, wall_s=0.0, command="")

    def few(self, names, count):
        """Let these loaders give so many batches alone."""
        for name, loader in self.loaders(names).items():
            setattr(self.trainer, name, Few(loader, count, self.trainer.device))

    def timed(self, names, count, *functions):
        """Seconds of calls on a few batches of these loaders, the second time."""
        for _ in range(2):
            self.few(names, count)
            started = now(self.trainer.device)
            for function in functions:
                function()
        return now(self.trainer.device) - started

    def train(self):
        """An epoch and its end; then all of them at that pace."""
        trainer = self.trainer
        epochs = range(trainer.start_epoch, trainer.max_epoch)
        trainer.epoch = epochs[0]
        count = max(STEPS, trainer.cfg.TRAIN.ACCUMULATE)
        seconds = self.timed(TRAINING, count, trainer.before_epoch, trainer.run_epoch)
        loader = trainer.train_loader_x
        end = self.evaluate(trainer.after_epoch, trainer.save_progress)
        self.few(TRAINING, sys.maxsize // 2)  # for their lengths alone
        batches = [self.batches(epoch) for epoch in epochs]
        self.steps = sum(batches)
        self.step = (seconds + max(0, batches[0] - len(loader.times)) * loader.pace) / batches[0]
        self.add("steps", self.steps * self.step)
        self.add("ends of epochs", len(epochs) * end)

    def batches(self, epoch):
        """How many batches an epoch has."""
        trainer = self.trainer
        if callable(getattr(trainer, "epoch_batches", None)):
            trainer.epoch = epoch
            trainer.epoch_batches()
        return getattr(trainer, "num_batches", None) or len(trainer.train_loader_x)

    def evaluate(self, *functions):
        """Seconds of calls that may evaluate, with the batches that are left out."""
        seconds = self.timed(EVALUATION, EVALUATED, *functions)
        ran = [loader for loader in self.loaders(EVALUATION).values() if loader.times]
        return seconds + sum((len(loader.loader) - len(loader.times)) * loader.pace for loader in ran)

    def sample_bank(self, bank, numbers):
        """Rows of a few batches, over and over, for the missing rounds of a bank; what encoding all would take."""
        for number in {number for folder, number in self.known if folder == bank.folder}.intersection(numbers):
            bank._rounds[number] = self.known[bank.folder, number]
        numbers = [number for number in numbers if number not in bank._rounds]
        if not numbers:
            return
        started = time.perf_counter()
        order = torch.randperm(len(bank.pixels), generator=torch.Generator().manual_seed(0))
        loader = Few(bank.loader(numbers[:1], order.split(bank.batch_size)), 2, self.trainer.device)
        parts = [bank._encode(images) for images in loader]
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        rows = {name: value[torch.arange(len(bank.pixels)) % len(value)] for name, value in rows.items()}
        bank._rounds |= dict.fromkeys(numbers, rows)
        self.known |= {(bank.folder, number): rows for number in numbers}
        seconds = loader.pace * len(loader.loader) * len(numbers)
        self.add("training features" if bank.pixels.is_train else "test features", seconds)
        size = sum(value.nbytes for value in rows.values())
        self.pictures += len(bank.pixels) * len(numbers)
        self.bank_bytes += size * len(numbers)
        self.bank_folder = bank.folder
        if self.trainer.device.type == "cpu":
            self.peak_mb += size * (len(numbers) - 1) / 2**20  # in memory only once here
        self.sampling += time.perf_counter() - started
