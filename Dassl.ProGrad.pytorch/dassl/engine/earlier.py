"""The earlier run, or half of this one, that training goes on from: is it the same, and what is taken over."""

import math
import os

from dassl.config import leaves, read_yaml
from dassl.optim.lr_scheduler import go_on
from dassl.utils import UserError, atomic_save, get_logger, load_checkpoint
from dassl.utils.distributed import is_main

from .base import BEST
from .state import plain

# Keys that may differ between the two halves of a run: they change where and how, not what
_FREE = (
    "OUTPUT_DIR", "RESUME", "PRESET", "VERBOSE", "USE_CUDA", "DETERMINISTIC", "DATASET.ROOT", "DATALOADER.NUM_WORKERS",
    "DATALOADER.PERSISTENT", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TEST.EVALUATOR",
    "TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT", "TEST.SPLIT", "MODEL.BACKBONE.PATH", "FEATURES.",
    "TRAINER.CONDU.STREAM", "TRAINER.CONDU.EXPERTS", "TRAINER.CONDU.HISTORY",
)  # fmt: skip
# Keys that a run shares with another one that cfg.RESUME names; `kept_keys` of its trainer too
_KEPT = (
    "TRAINER.NAME", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "DATASET.SOURCE_DOMAINS",
    "DATASET.TARGET_DOMAINS", "MODEL.BACKBONE.NAME",
)  # fmt: skip


def differs(path, old, trainer):
    """Does the config of `trainer` differ from `old`, {key: value} of the earlier run at `path`?

    UserError where it must not: in all but _FREE where an interrupted run goes on by itself, in _KEPT where
    cfg.RESUME names another one.
    """
    new = plain(dict(leaves(trainer.cfg)))
    # a key that only one of them has belongs to a trainer that was added or removed since
    found = {
        key: f"{key} was {old[key]!r}, is {new[key]!r}"
        for key in sorted(old.keys() & new.keys())
        if _listed(old[key]) != _listed(new[key]) and not key.startswith(_FREE)
    }
    message = f"{path} is of a run with another config: {'; '.join(found.values())}"
    if found and not trainer.cfg.RESUME:
        raise UserError(f"{message}. Give that config to go on, or --overwrite to start afresh")
    if other := [words for key, words in found.items() if key.startswith((*_KEPT, *trainer.kept_keys))]:
        raise UserError(f"{path} is of another run, which this one cannot go on with: {'; '.join(other)}")
    if found:
        get_logger().info(message)
    return bool(found)


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def take_up(trainer, name, optimizer, scheduler, epochs):
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


def follow_pointers(trainer):
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
        take_up(trainer, name, *(parts[name] and parts[name].state for parts in held), epoch)
    return epoch


def take_best(trainer):
    """The best model so far is the other run's: a copy of it, or its result is forgotten where it is gone."""
    files = [os.path.join(trainer.cfg.RESUME, name, BEST) for name in trainer._models]
    if not all(map(os.path.isfile, files)):
        trainer.best_result = -math.inf
    elif trainer.best_result > -math.inf and is_main():
        for name, file in zip(trainer._models, files, strict=True):
            atomic_save(load_checkpoint(file), os.path.join(trainer.output_dir, name, BEST))
