"""resume.pt: all that a run needs to go on as if it had never been interrupted.

Written whole after each epoch, and after the step at which SIGTERM stops one; removed at the end of training, by
launch.run once results.json is there. It holds the registered models with their optimizers and schedulers, the random
states (Python, NumPy, torch, CUDA), the epoch, the best result so far, what was printed by epoch, and every attribute
of the trainer with `state_dict` and `load_state_dict` (a gradient scaler, an unregistered optimizer, a teacher
network); of a module, only the tensors that training has changed. Other attributes are the trainer's own affair: the
first that changes costs one warning.

An epoch that SIGTERM broke off is `within`: its batches so far, their losses, the random states after them; the
others are those before the epoch, whose batches are drawn again and passed over. In the first epoch, killed, it holds
nothing but the number 0: checkpoints beside it are of a run that has to start again.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping

from dassl.config import leaves, read_yaml
from dassl.optim.lr_scheduler import go_on
from dassl.utils import MetricMeter, UserError, atomic_save, brief, get_logger, load_checkpoint, read_text, upgrade_keys
from dassl.utils.distributed import gather, is_main, rank, world_size

from .base import TrainerBase
from .checkpoint import best_digests, check_best, take_best
from .distributed import batch_share
from .recipe import GO_ON, differing, recipe
from .state import Attributes, plain, rng_state, running_loaders, set_rng_state, stop_workers

log = get_logger()

FILE = "resume.pt"
FORMAT = 1
# Keys that a run shares with another one that cfg.RESUME names; `kept_keys` of its trainer too
_KEPT = (
    "TRAINER.NAME", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "DATASET.SOURCE_DOMAINS",
    "DATASET.TARGET_DOMAINS", "MODEL.BACKBONE.NAME",
)  # fmt: skip
_UNFIT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)


class ResumeState:
    """Saves and restores one trainer's run."""

    def __init__(self, trainer: TrainerBase):
        self.trainer = trainer
        self.seconds = 0.0  # that earlier sessions of this run took
        self.inputs = {}  # digests of what the run began from
        self.best = {}  # those of its best model's files, by model
        self.holds = False  # does the run's own resume.pt hold more than the number 0?
        self.hold = False  # does `end` leave it, for the caller to `drop`?
        self._rng = None  # of the interrupted run, until the first epoch begins
        self._within = None  # what it had done of an epoch, until that epoch takes it up
        self._start = {}  # random states and running loaders before the epoch
        self._started = time.monotonic()
        self._iterated = []  # loaders that the interrupted run had iterated
        self.attributes = Attributes(trainer)

    @property
    def path(self) -> str:
        return os.path.join(self.trainer.output_dir, FILE)

    def resume(self) -> int:
        """Restore from the output folder, or else from cfg.RESUME -> epoch to go on with.

        resume.pt counts most; a folder without one is resumed by Dassl's pointer files, which hold neither
        random states nor the best result, and so are not for a run that was broken off in its first epoch.
        From cfg.RESUME under another config, the schedules are this run's own at the epochs that are done; nothing
        to resume there means from scratch. UserError if it is no folder, or of another trainer or other data.
        """
        cfg, trainer = self.trainer.cfg, self.trainer
        if os.path.isfile(self.path):
            try:
                epoch = self.load(self.path, own=True)
            except UserError as error:
                way = "" if "--overwrite" in str(error) else ". --overwrite starts the run afresh"
                raise UserError(f"{error}{way}") from error
            self.holds = bool(epoch or self._within)
            if self.holds or not cfg.RESUME:
                return epoch
        if not cfg.RESUME:
            return trainer.resume_model_if_exist(trainer.output_dir)
        if not os.path.isdir(cfg.RESUME):
            raise UserError(f'Nothing to resume in "{cfg.RESUME}": no such folder')
        path = os.path.join(cfg.RESUME, FILE)
        epoch = self.load(path) if os.path.isfile(path) else follow_pointers(trainer)
        take_best(trainer)
        self.best = best_digests(trainer)
        return epoch

    def begin(self) -> None:
        """Right before the first epoch: note what can change, and take up the random states."""
        self.attributes.begin()
        for name in self._iterated:
            _start_workers(getattr(self.trainer, name, None))
        if self._rng is not None:
            _take_up(self._rng)
            self._rng = None
        self._start = self._generators()
        if is_main() and self.trainer.start_epoch < self.trainer.max_epoch and not os.path.isfile(self.path):
            atomic_save({"format": FORMAT, "epoch": 0}, self.path)

    def save(self) -> None:
        """Rewrite resume.pt after the epoch `trainer.epoch`. Raises WriteFailed; the old one stays whole.

        Of several processes the main one writes, and all read.
        """
        trainer = self.trainer
        trainer.check_finite()
        if not is_main():
            return
        self._start = self._generators()
        atomic_save(self._content(trainer.epoch + 1), self.path)
        self.holds = True
        self.attributes.warn(FILE)

    def save_within(self, losses: MetricMeter) -> None:
        """Rewrite resume.pt after the batch `trainer.batch_idx`. Raises WriteFailed; the old one stays whole.

        Not if the epoch has changed what resume.pt does not hold, or begins with a hook: it is done again whole then.
        All processes take part. losses: the epoch's MetricMeter.
        """
        trainer = self.trainer
        trainer.check_finite()
        states = gather(rng_state())
        if not is_main():
            return
        state = self._content(trainer.epoch)
        if self.attributes.lost() or type(trainer).before_epoch is not TrainerBase.before_epoch:
            return
        within = {"batches": trainer.batch_idx + 1, "losses": losses.state_dict(), "rng": states}
        atomic_save(state | {"within": plain(within)}, self.path)
        self.holds = True
        log.info(f"Told to stop: saved after batch {trainer.batch_idx + 1} of epoch {trainer.epoch + 1}")

    def pass_over(self, batches: Iterator, losses: MetricMeter) -> bool:
        """In the epoch that was broken off: draw its first batches again, take up its losses -> were there any?

        batches: iterator of the epoch; each one drawn is told to `batch_share`.
        """
        within, self._within = self._within, None
        if within is None:
            return False
        for _ in itertools.islice(batches, within["batches"]):
            batch_share(self.trainer)
        losses.load_state_dict(within["losses"])
        states = within["rng"]
        _take_up(states[rank() if len(states) == world_size() else 0])
        return True

    def _content(self, epochs):
        """What resume.pt holds of a run that has finished so many epochs."""
        trainer, plain_of = self.trainer, self.attributes.plain
        self.attributes.unsaved = set()
        return {
            "format": FORMAT,
            "epoch": epochs,
            "best_result": float(trainer.best_result),
            "best": self.best,
            "history": trainer._history,
            "seconds": self.seconds + time.monotonic() - self._started,
            "config": plain(dict(leaves(trainer.cfg))),
            "inputs": self.inputs,
            "models": {
                name: {
                    "model": plain_of(f"model {name}", model),
                    "optim": plain_of(f"optimizer of {name}", trainer._optims[name]),
                    "sched": plain_of(f"scheduler of {name}", trainer._scheds[name]),
                }
                for name, model in trainer._models.items()
            },
            "attributes": self.attributes.state(),
            **self._start,
        }

    def _generators(self):
        return {"rng": rng_state(), "loaders": list(running_loaders(self.trainer))}

    def last_checkpoint(self) -> str:
        """Path of the newest file that training can go on from, or "none" -> str."""
        candidates = [self.path] if self.holds else []
        for name in self.trainer._models:
            folder = os.path.join(self.trainer.output_dir, name)
            if os.path.isfile(pointer := os.path.join(folder, "checkpoint")):
                candidates.append(os.path.join(folder, read_text(pointer).partition("\n")[0].strip()))
        return next((path for path in candidates if os.path.isfile(path)), "none")

    def end(self) -> None:
        """Training is over: end persistent workers, remove resume.pt."""
        stop_workers(self.trainer)
        if not self.hold:
            self.drop()

    def drop(self) -> None:
        """Remove resume.pt, if it is there."""
        if is_main() and os.path.isfile(self.path):
            os.unlink(self.path)

    def load(self, path: str, own: bool = False) -> int:
        """Restore the trainer from a resume.pt, `own` or of the run that cfg.RESUME names -> epoch to go on with.

        Raises:
            UserError: damaged, of another config, or does not fit the models.
        """
        state = load_checkpoint(path)
        if state.get("format") != FORMAT:
            raise UserError(f"{path}: expected resume format {FORMAT}, found {brief(state.get('format'))}")
        self._within = state.get("within")
        if state.get("epoch") == 0 and self._within is None:
            log.info("An earlier run was broken off in its first epoch: train from scratch")
            return 0
        try:
            self._take_up(path, state, own)
            more = f" and {self._within['batches']} batches of the next" if self._within else ""
        except _UNFIT as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} does not fit this run, or is damaged: {error}") from error
        log.info(f"Resuming from {path}: {state['epoch']} epochs are done{more}")
        if self.trainer.cfg.SEED < 0:
            log.info("This run has no seed, so its data may be drawn anew: the result can differ")
        return state["epoch"]

    def _take_up(self, path, state, own):
        """All that is to be there before the first epoch; the random states wait for it."""
        trainer = self.trainer
        other = differs(path, state["config"], trainer, state.get("inputs", {}))
        if other and self._within is not None:
            log.info("The epoch that was broken off is done again whole: its batches were those of another config")
            self._within = None
        if list(state["models"]) != list(trainer._models):
            theirs, ours = list(state["models"]), list(trainer._models)
            raise UserError(f"{path} holds the models {theirs}, this run has {ours}")
        for name, saved in state["models"].items():
            model = trainer._models[name]
            model.load_state_dict(upgrade_keys(saved["model"], model))
            if other:
                _take_rates(trainer, name, saved["optim"], saved["sched"], state["epoch"])
                continue
            for part, kept in ((trainer._optims[name], saved["optim"]), (trainer._scheds[name], saved["sched"])):
                if part is not None and kept is not None:
                    part.load_state_dict(kept)
        self.attributes.restore(state["attributes"])
        trainer.best_result = float(state["best_result"])
        trainer._history = state.get("history", [])  # older files have none
        trainer.epoch = state["epoch"] - 1  # for what runs before the first epoch, or if none is left
        self.seconds = float(state["seconds"])
        if own:
            known = trainer.best_result > -math.inf and trainer.chooses_best()
            # older files have no digests
            self.best = state.get("best", dict.fromkeys(trainer._models) if known else {})
            self.inputs = state.get("inputs", {}) | self.inputs
            check_best(trainer, self.best, state["epoch"])
        self._rng, self._iterated = state["rng"], state["loaders"]


def _take_up(states):
    """Set the random states that resume.pt holds. UserError if they are none."""
    try:
        set_rng_state(states)
    except _UNFIT as error:
        raise UserError(f"{FILE} is damaged: its random states cannot be set ({error})") from error


def _start_workers(loader):
    """Persistent workers draw a seed when they start; the uninterrupted run has done so long ago."""
    if loader is not None and getattr(loader, "persistent_workers", False):
        iter(loader)


def differs(path: str, old: Mapping, trainer, inputs: Mapping | None = None) -> bool:
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
        get_logger().info(message)
    return bool(lines)


def _take_rates(trainer, name, optimizer, scheduler, epochs):
    """States of a model's optimizer and scheduler from a run of another config, at the rates of this one."""
    ours = trainer._scheds[name]
    steps = epochs * trainer.steps_per_epoch if getattr(ours, "per_step", False) else None
    try:
        go_on(trainer._optims[name], ours, optimizer, scheduler, steps)
    except (KeyError, ValueError) as error:
        raise UserError(f'"{trainer.cfg.RESUME}" does not fit this run: {error}') from error


class _Held:
    """In an optimizer's or a scheduler's place: its state, not taken up."""

    state = None

    def load_state_dict(self, state):
        self.state = state


def follow_pointers(trainer) -> int:
    """As Dassl resumes from cfg.RESUME, which has no resume.pt -> epoch to go on with, 0 if there is nothing.

    Under another config, or one that nobody knows, by this run's rates and schedules.
    """
    config = os.path.join(trainer.cfg.RESUME, "config.yaml")
    if os.path.isfile(config) and not differs(config, dict(leaves(read_yaml(config))), trainer):
        return trainer.resume_model_if_exist(trainer.cfg.RESUME)
    built = trainer._optims, trainer._scheds
    held = [{name: part and _Held() for name, part in parts.items()} for parts in built]
    trainer._optims, trainer._scheds = held
    try:
        epoch = trainer.resume_model_if_exist(trainer.cfg.RESUME)
    finally:
        trainer._optims, trainer._scheds = built
    for name in trainer._models if epoch else ():
        _take_rates(trainer, name, *(parts[name] and parts[name].state for parts in held), epoch)
    return epoch
