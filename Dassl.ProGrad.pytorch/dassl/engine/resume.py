"""resume.pt: all that a run needs to go on as if it had never been interrupted.

Written whole after a session's first epoch and the last one, after others once TRAIN.RESUME_SECONDS have passed since,
and where SIGTERM, Ctrl-C or an error ends a run; removed at the end of training, by launch.run once results.json is
there. It holds the registered models with their optimizers and schedulers, the random states (Python, NumPy, torch,
CUDA), the epoch, the best result so far, what was printed by epoch, every attribute of the trainer with `state_dict`
and `load_state_dict` (a gradient scaler, an unregistered optimizer, a teacher network), and every plain one that
training has changed; of a module, only the tensors that training has changed.

An epoch that SIGTERM broke off is `within`: its batches so far, their losses, the random states after them; the
others are those before the epoch, whose batches are drawn again and passed over.
"""

import contextlib
import copy
import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dassl.config import leaves, read_yaml
from dassl.optim.lr_scheduler import go_on
from dassl.utils import MetricMeter, UserError, WriteFailed, atomic_save, brief, checkpoint_digest, get_logger
from dassl.utils.distributed import gather, is_main, rank, world_size
from dassl.utils.torchtools import load_checkpoint, pointed_at

from .checkpoint import BEST
from .distributed import batch_share, start_together
from .recipe import GO_ON, differing, recipe
from .signals import should_stop
from .state import Attributes, plain, rng_state, running_loaders, saved, set_rng_state, stop_workers

log = get_logger()

FILE = "resume.pt"
FORMAT = 1
# Keys that a run shares with another one that cfg.RESUME names; `kept_keys` of its trainer too
_KEPT = (
    "TRAINER.NAME", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "DATASET.SOURCE_DOMAINS",
    "DATASET.TARGET_DOMAINS", "MODEL.BACKBONE.NAME",
)  # fmt: skip


class ResumeState:
    """Saves and restores one trainer's run."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.path = os.path.join(trainer.output_dir, FILE)
        self.seconds = 0.0  # that earlier sessions of this run took
        self.inputs = {}  # digests of what the run began from
        self.best = {}  # those of its best model's files, by model
        self.hold = False  # does `end` leave resume.pt, for the caller to `drop`?
        self._rng = None  # of the interrupted run, until the first epoch begins
        self._within = None  # what it had done of an epoch, until that epoch takes it up
        self._start = {}  # random states and running loaders before the epoch
        self._started = time.monotonic()
        self._written = -math.inf  # when resume.pt was, in this session
        self._held: dict | None = None  # what it would hold of a later epoch
        self._iterated = []  # loaders that the interrupted run had iterated
        self.attributes = Attributes(trainer)

    def resume(self) -> int:
        """Restore from the output folder, or else from cfg.RESUME -> epoch to go on with.

        resume.pt counts most; a folder without one is resumed by Dassl's pointer files, which hold no random states.
        From cfg.RESUME under another config, the schedules are this run's own at the epochs that are done; nothing to
        resume there means from scratch. UserError if it is no folder, or of another trainer or other data.
        """
        trainer, folder = self.trainer, self.trainer.cfg.RESUME
        if os.path.isfile(self.path):
            try:
                return self.load(self.path, again=True)
            except UserError as error:
                way = "" if "--overwrite" in str(error) else ". --overwrite starts the run afresh"
                raise UserError(f"{error}{way}") from error
        if not folder:
            return trainer.resume_model_if_exist(trainer.output_dir)
        if not os.path.isdir(folder):
            raise UserError(f'Nothing to resume in "{folder}": no such folder')
        path = os.path.join(folder, FILE)
        epoch = self.load(path) if os.path.isfile(path) else follow_pointers(trainer)
        self._take_best(folder)
        return epoch

    def begin(self) -> None:
        """Right before the first epoch: note what can change, and take up the random states."""
        start_together(self.trainer)
        self.attributes.begin()
        self._config = plain(dict(leaves(self.trainer.cfg)))
        for name in self._iterated:
            # persistent workers draw a seed when they start; the uninterrupted run has done so long ago
            loader: Any = getattr(self.trainer, name, None)
            if getattr(loader, "persistent_workers", False):
                iter(loader)
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None
        self._start = self._generators()

    def save(self) -> None:
        """Rewrite resume.pt after the epoch `trainer.epoch`, if it is due. Raises WriteFailed; the old one stays whole.

        All processes take part. The main one writes, by its clock, and all read.
        """
        trainer = self.trainer
        trainer.check_finite()
        due = should_stop() or trainer.epoch + 1 >= trainer.max_epoch
        if is_main():
            self._start = self._generators()
            content = self._content(trainer.epoch + 1)
            if due or time.monotonic() - self._written >= trainer.cfg.TRAIN.RESUME_SECONDS:
                atomic_save(content, self.path)
                self._written, self._held = time.monotonic(), None
            else:
                moving = content.keys() - {"history", "config", "inputs"}
                self._held = content | {key: copy.deepcopy(content[key]) for key in moving}

    @contextlib.contextmanager
    def saving_held(self) -> Iterator[None]:
        """What ends the block, an error or Ctrl-C, leaves the last finished epoch, if the disk takes it."""
        try:
            yield
        except BaseException:
            if self._held is not None:
                with contextlib.suppress(WriteFailed):
                    atomic_save(self._held, self.path)
            raise

    def save_within(self, losses: MetricMeter) -> None:
        """Rewrite resume.pt after the batch `trainer.batch_idx`. Raises WriteFailed; the old one stays whole.

        All processes take part. losses: the epoch's MetricMeter.
        """
        trainer = self.trainer
        trainer.check_finite()
        states = gather(rng_state())
        if is_main():
            within = {"batches": trainer.batch_idx + 1, "losses": losses.state_dict(), "rng": states}
            atomic_save(self._content(trainer.epoch) | {"within": plain(within)}, self.path)
            self._held = None
            log.info(f"Told to stop: saved after batch {trainer.batch_idx + 1} of epoch {trainer.epoch + 1}")

    def pass_over(self, batches: Iterator, losses: MetricMeter) -> None:
        """In the epoch that was broken off: draw its first batches again, take up its losses.

        batches: iterator of the epoch; each one drawn is told to `batch_share`.
        """
        within, self._within = self._within, None
        if within is None:
            return
        for _ in itertools.islice(batches, within["batches"]):
            batch_share(self.trainer)
        losses.load_state_dict(within["losses"])
        states = within["rng"]
        set_rng_state(states[rank() if len(states) == world_size() else 0])

    def _content(self, epochs):
        """What resume.pt holds of a run that has finished so many epochs."""
        trainer = self.trainer
        return {
            "format": FORMAT,
            "epoch": epochs,
            "best_result": float(trainer.best_result),
            "best": self.best,
            "history": trainer._history,
            "seconds": self.seconds + time.monotonic() - self._started,
            "config": self._config,
            "inputs": self.inputs,
            "models": {name: self._registered(name) for name in trainer._models},
            **self.attributes.state(),
            **self._start,
        }

    def _registered(self, name):
        """States of a registered model, its optimizer and scheduler."""
        trainer = self.trainer
        parts = {"model": trainer._models[name], "optim": trainer._optims[name], "sched": trainer._scheds[name]}
        states = {kind: None if part is None else part.state_dict() for kind, part in parts.items()}
        return {kind: saved(f"the {kind} of {name}", state) for kind, state in states.items()}

    def _generators(self):
        return {"rng": rng_state(), "loaders": list(running_loaders(self.trainer))}

    def record_best(self) -> None:
        """The best weights so far have just been written: by these digests a resumed run knows them again."""
        files = {name: os.path.join(self.trainer.output_dir, name, BEST) for name in self.trainer._models if is_main()}
        self.best = {name: checkpoint_digest(file) for name, file in files.items() if os.path.isfile(file)}

    def _take_best(self, folder):
        """The best model so far is that of the run in `folder`: a copy of it, or nothing where it is gone or newer."""
        trainer = self.trainer
        files = {name: os.path.join(folder, name, BEST) for name in trainer._models}
        if not all(os.path.isfile(f) and self.best.get(n) in (None, checkpoint_digest(f)) for n, f in files.items()):
            trainer.best_result, self.best = -math.inf, {}
        elif trainer.best_result > -math.inf and is_main():
            for name, file in files.items():
                atomic_save(load_checkpoint(file), os.path.join(trainer.output_dir, name, BEST))
            self.record_best()

    def _check_best(self, epochs):
        """UserError where the best weights are not those that the run has written.

        Those of an epoch after `epochs` were written after resume.pt, before the run was killed. They beat all that
        came before them, so they are found again whatever is the best until then: nothing.
        """
        for name, digest in self.best.items() if is_main() else ():
            file = os.path.join(self.trainer.output_dir, name, BEST)
            there = os.path.isfile(file)
            if there and digest == checkpoint_digest(file):
                continue
            if not there or load_checkpoint(file).get("epoch") not in range(epochs + 1, self.trainer.max_epoch + 1):
                what = "is not the one that this run wrote" if there else "is gone"
                ways = "put it back, or --overwrite starts the run afresh"
                raise UserError(f"{file}, the best model so far, {what}: {ways}")
            self.trainer.best_result = -math.inf

    def last_checkpoint(self) -> str:
        """Path of the newest file that training can go on from, or "none" -> str."""
        folders = [os.path.join(self.trainer.output_dir, name) for name in self.trainer._models]
        pointed = [pointed_at(folder) for folder in folders if os.path.isfile(os.path.join(folder, "checkpoint"))]
        return next(filter(os.path.isfile, [self.path, *pointed]), "none")

    def end(self) -> None:
        """Training is over: end persistent workers, remove resume.pt."""
        stop_workers(self.trainer)
        if not self.hold:
            self.drop()

    def drop(self) -> None:
        """Remove resume.pt, if it is there."""
        if is_main() and os.path.isfile(self.path):
            os.unlink(self.path)

    def load(self, path: str, again: bool = False) -> int:
        """Restore the trainer from a resume.pt, of this run (again) or of cfg.RESUME's -> epoch to go on with.
        UserError: damaged, of another config, or does not fit the models."""
        state = load_checkpoint(path)
        if state.get("format") != FORMAT:
            raise UserError(f"{path}: expected resume format {FORMAT}, found {brief(state.get('format'))}")
        try:
            self._take_up(path, state, again)
            more = f" and {self._within['batches']} batches of the next" if self._within else ""
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} does not fit this run, or is damaged: {error}") from error
        log.info(f"Resuming from {path}: {state['epoch']} epochs are done{more}")
        if self.trainer.cfg.SEED < 0:
            log.info("This run has no seed, so its data may be drawn anew: the result can differ")
        return state["epoch"]

    def _take_up(self, path, state, again):
        """All that is to be there before the first epoch; the random states wait for it."""
        trainer, self._within = self.trainer, state.get("within")
        other = differs(path, state["config"], trainer, state.get("inputs", {}))
        if other and self._within is not None:
            log.info("The epoch that was broken off is done again whole: its batches were those of another config")
            self._within = None
        if list(state["models"]) != list(trainer._models):
            raise UserError(f"{path} holds the models {list(state['models'])}, this run has {list(trainer._models)}")
        for name, kept in state["models"].items():
            model, optimizer, scheduler = trainer._models[name], trainer._optims[name], trainer._scheds[name]
            model.load_state_dict(kept["model"])
            if other:
                go_on_at_own_rates(trainer, name, kept["optim"], state["epoch"])
                continue
            for part, of_part in ((optimizer, kept["optim"]), (scheduler, kept["sched"])):
                if part is not None and of_part is not None:
                    part.load_state_dict(of_part)
        self.attributes.restore(state["attributes"], state.get("values", {}))
        trainer._history = state.get("history", [])  # older files have none
        trainer.epoch = state["epoch"] - 1  # for what runs before the first epoch, or if none is left
        self.seconds = float(state["seconds"])
        trainer.best_result = float(state["best_result"])
        self.best = state.get("best", {})  # older files have neither digests nor inputs
        if again:
            self.inputs = state.get("inputs", {}) | self.inputs
            self._check_best(state["epoch"])
        self._rng, self._iterated = state["rng"], state["loaders"]
        for states in [*(self._within or {"rng": []})["rng"], self._rng]:
            set_rng_state(states)  # what cannot be set is damaged


def differs(path: str, old: Mapping, trainer: Any, inputs: Mapping | None = None) -> bool:
    """Does the recipe of `trainer` differ from `old`, {key: value} of the earlier run at `path`, and its `inputs`?

    UserError where it must not: at all where an interrupted run goes on by itself, in _KEPT where cfg.RESUME names
    another one.
    """
    asked = recipe(trainer.cfg) | {"RESUME": old.get("RESUME", "")}
    lines = differing({"recipe": old, "inputs": inputs or {}}, asked, trainer._progress.inputs)
    message = f"{path} is of a run with another config: {'; '.join(lines)}"
    if lines and not trainer.cfg.RESUME:
        raise UserError(f"{message}. {GO_ON}")
    if other := [line for line in lines if line.startswith((*_KEPT, *trainer.kept_keys))]:
        raise UserError(f"{path} is of another run, which this one cannot go on with: {'; '.join(other)}")
    if lines:
        log.info(message)
    return bool(lines)


def follow_pointers(trainer: Any) -> int:
    """As Dassl resumes from cfg.RESUME, which has no resume.pt -> epoch to go on with, 0 if there is nothing.

    Under another config, or one that nobody knows, by this run's rates and schedules.
    """
    folder = trainer.cfg.RESUME
    config = os.path.join(folder, "config.yaml")
    if os.path.isfile(config) and not differs(config, dict(leaves(read_yaml(config))), trainer):
        return trainer.resume_model_if_exist(folder)
    built = trainer._optims, trainer._scheds
    trainer._optims = trainer._scheds = dict.fromkeys(trainer._models)
    try:
        epoch = trainer.resume_model_if_exist(folder)
    finally:
        trainer._optims, trainer._scheds = built
    for name in trainer._models if epoch else ():
        optimizer = load_checkpoint(pointed_at(os.path.join(folder, name))).get("optimizer")
        go_on_at_own_rates(trainer, name, optimizer, epoch)
    return epoch


def go_on_at_own_rates(trainer: Any, name: str, optimizer: Mapping | None, epochs: int) -> None:
    """The moments of a model's optimizer from a run of another config, `epochs` in, at the rates of this one."""
    scheduler = trainer._scheds[name]
    steps = epochs * (trainer.steps_per_epoch if getattr(scheduler, "per_step", False) else 1)
    try:
        go_on(trainer._optims[name], scheduler, optimizer, steps)
    except (KeyError, ValueError) as error:
        raise UserError(f'"{trainer.cfg.RESUME}" does not fit this run: {error}') from error
