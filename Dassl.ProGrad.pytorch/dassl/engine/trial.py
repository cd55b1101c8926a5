"""The beginning of a run, to tell what all of it will take: its own trainer, data and loop, in a folder that goes.

Each phase is timed as it runs. What is left out of it, batches and rounds of the feature bank, is added at the
pace of what ran: an epoch is cut short after a few batches, an evaluation after a few more.
"""

import contextlib
import logging
import os
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from statistics import mean, median

import torch

from dassl.clip.rehearsal import rehearsed_banks
from dassl.utils import get_logger
from dassl.utils.memory import peak_mb

from .launch import backend, build_run, load_trained
from .results import write_results
from .state import stop_workers

TRAINING, EVALUATION = 8.0, 3.0  # seconds that training and one evaluation may take, once these batches are through:
STEPS, WARM = 8, 2  # counted, and before them, not counted


class Enough(BaseException):
    """Ends an epoch where the trial has seen enough of it, whatever the trainer's own loop is."""


class Watched:
    """A loader that notes how long each of its batches takes, and stops once `seconds` are over and enough is seen.

    ends: by Enough, or else as at its end, with the time of the batches left out in `missed`.
    """

    def __init__(self, loader, seconds, device, *, ends=False):
        self.loader, self.seconds, self.device, self.ends = loader, seconds, device, ends
        self.times, self.missed = [], 0.0

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        needed = WARM + STEPS + 2 * self.loader.num_workers  # workers have read ahead that much
        started = last = self.now()
        first = len(self.times)
        for count, batch in enumerate(self.loader, start=1):
            yield batch
            last, before = self.now(), last
            self.times.append(last - before)
            slow = last - started > 2 * self.seconds and count > WARM
            if slow or last - started > self.seconds and count >= min(needed, len(self.loader)):
                if self.ends:
                    raise Enough
                self.missed += (len(self.loader) - count) * typical(self.times[first:], self.loader.num_workers)
                return

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def typical(times, workers=0):
    """Seconds of a batch: the median; with workers, whose batches come in bursts, the mean."""
    counted = times[WARM + workers :] or times[-1:]
    return mean(counted) if workers else median(counted)


@dataclass(frozen=True)
class Evaluation:
    """What a run evaluates that trains nothing."""

    model_dir: str = ""
    load_epoch: int | None = None


@dataclass
class Estimate:
    """Seconds by phase, bytes of banks, MiB of memory. step: seconds of one; steps: batches of the training.

    warnings: what the run's own log would warn of.
    """

    phases: dict = field(default_factory=dict)
    steps: int = 0
    step: float = 0.0
    pictures: int = 0  # that go into the bank
    bank_bytes: int = 0
    bank_folders: set = field(default_factory=set)
    peak_mb: float = 0.0
    warnings: list = field(default_factory=list)

    @property
    def seconds(self):
        return sum(self.phases.values())

    def add(self, phase, seconds):
        self.phases[phase] = self.phases.get(phase, 0.0) + max(0.0, seconds)


@contextlib.contextmanager
def trial(cfg, *, folder="", seconds=TRAINING, known=None):
    """The Trial of a config; its folder and its log are gone afterwards.

    folder: one that is kept, in place of a temporary one. seconds: that training may take. known: banks that earlier
    trials have counted, which this one adds to.
    """
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="preflight-") as place:
        os.makedirs(place, exist_ok=True)
        own = cfg.clone()
        own.defrost()
        own.OUTPUT_DIR, own.RESUME, own.VERBOSE = place, "", False
        own.freeze()
        with backend(own), rehearsed_banks(known) as banks:
            made = Trial(own, banks, seconds)
            try:
                yield made
            finally:
                made.close()


class Trial:
    """A trainer that has been built as a run would build it, and what came of timing it."""

    def __init__(self, cfg, banks, seconds):
        self.banks, self.estimate = banks, Estimate()
        self.seconds, self.evaluation = seconds, min(seconds, EVALUATION)
        self.folder = cfg.OUTPUT_DIR
        with self.quiet(), self.phase("start"):
            self.trainer = build_run(cfg)
        self.device = self.trainer.device

    def quiet(self):
        """Context: what is printed goes to a file of the trial's folder; what it warns of is kept."""
        return _quiet(self.folder, self.estimate.warnings)

    @contextlib.contextmanager
    def phase(self, name):
        """Time what is within; samples for the bank count where the bank does."""
        spent, started = self.banks.spent, time.perf_counter()
        yield
        self.estimate.add(name, time.perf_counter() - started - (self.banks.spent - spent))

    def rehearse(self, evaluation=None):
        """Run the beginning of everything -> the Estimate. Raises what the run would raise."""
        with self.quiet():
            if evaluation is not None:
                with self.phase("start"):
                    load_trained(self.trainer, evaluation.model_dir, evaluation.load_epoch)
            else:
                with self.phase("start"):
                    self.trainer.before_train()
                self.train()
            if evaluation is not None or not self.trainer.cfg.TEST.NO_TEST:
                self.test(trained=evaluation is None)
        return self.finish()

    def leave_results(self):
        """Leave what a finished run leaves, for a trial that goes on from it; the weights are those of a few steps."""
        trainer = self.trainer
        with self.quiet():
            trainer.save_model(trainer.max_epoch - 1, self.folder)
            write_results(self.folder, trainer, trainer.cfg, wall_s=0.0, command="")

    def train(self):
        """Epochs until the time is up, the last one broken off; then all of them at that pace."""
        trainer, estimate = self.trainer, self.estimate
        with self.phase("start"):
            trainer.start_progress()
        watched = trainer.train_loader_x = Watched(trainer.train_loader_x, self.seconds, self.device, ends=True)
        validation = (
            Watched(trainer.val_loader, self.evaluation, self.device) if trainer.val_loader is not None else None
        )
        trainer.val_loader = validation
        epochs, ends, until = [], [], time.perf_counter() + self.seconds
        for epoch in range(trainer.start_epoch, trainer.max_epoch):
            trainer.epoch = epoch
            watched.seconds, started = until - time.perf_counter(), time.perf_counter()
            with contextlib.suppress(Enough):
                trainer.before_epoch()
                trainer.run_epoch()
                epochs.append((watched.now() - started) / max(1, self.batches()))
            started, missed = time.perf_counter(), validation.missed if validation else 0.0
            trainer.after_epoch()
            trainer.save_progress()
            ends.append(time.perf_counter() - started + (validation.missed - missed if validation else 0.0))
            if time.perf_counter() > until:
                break
        trainer.train_loader_x = Watched(watched.loader, 0.0, self.device)  # asked for lengths alone
        if ends:
            estimate.step = median(epochs[1:] or epochs) if epochs else typical(watched.times, watched.num_workers)
            estimate.steps = sum(self.batches(epoch) for epoch in range(trainer.start_epoch, trainer.max_epoch))
            estimate.add("steps", estimate.steps * estimate.step)
            estimate.add("ends of epochs", median(ends[1:] or ends) * (trainer.max_epoch - trainer.start_epoch))

    def batches(self, epoch=None):
        """Batches of an epoch; None: the one that ran."""
        trainer = self.trainer
        if epoch is not None and callable(getattr(trainer, "epoch_batches", None)):
            trainer.epoch = epoch
            trainer.epoch_batches()
        return getattr(trainer, "num_batches", None) or len(trainer.train_loader_x)

    def test(self, trained):
        """The final test, and what else goes through the tower after training."""
        trainer = self.trainer
        watched = trainer.test_loader = Watched(trainer.test_loader, self.evaluation, self.device)
        with self.phase("test"):
            trainer.test()
        self.estimate.add("test", watched.missed)
        if besides := trainer.pictures_besides() if trained else 0:
            picture = typical(watched.times, watched.num_workers) / watched.batch_size
            self.estimate.add("pictures after training", besides * picture)

    def finish(self):
        estimate, banks = self.estimate, self.banks
        for name, seconds in banks.seconds.items():
            estimate.add(name, seconds)
        estimate.pictures, estimate.bank_bytes, estimate.bank_folders = banks.pictures, banks.size, banks.folders
        estimate.peak_mb = peak_mb(self.device) + (banks.more / 2**20 if self.device.type == "cpu" else 0)
        return estimate

    def close(self):
        """No open file and no process is left."""
        trainer = self.trainer
        for name in ("train_loader_x", "val_loader", "test_loader"):
            loader = getattr(trainer, name, None)
            if isinstance(loader, Watched):
                setattr(trainer, name, loader.loader)
        trainer.close_writer()
        stop_workers(trainer)


@contextlib.contextmanager
def _quiet(folder, found):
    """What is printed goes to a file in the folder; what it warns of, into the list `found`."""

    class Warnings(logging.Handler):
        def emit(self, record):
            text = record.getMessage()
            if record.levelno >= logging.WARNING or text.startswith("Warning"):
                found.append(" ".join(text.removeprefix("Warning:").split()))

    handler = Warnings()
    get_logger().addHandler(handler)
    try:
        with (
            open(os.path.join(folder, "trial.txt"), "a", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            warnings.catch_warnings(record=True) as caught,
        ):
            yield
    finally:
        get_logger().removeHandler(handler)
        found += [" ".join(str(each.message).split()) for each in caught if each.category is UserWarning]
