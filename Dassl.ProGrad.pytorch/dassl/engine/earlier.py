"""The earlier run, or half of this one, that training goes on from: is it the same, and what is taken over."""

import math
import os

from dassl.config import leaves, read_yaml
from dassl.optim.lr_scheduler import go_on
from dassl.utils import UserError, atomic_save, checkpoint_digest, get_logger, load_checkpoint
from dassl.utils.distributed import is_main

from .checkpoint import BEST
from .recipe import GO_ON, differing, recipe

# Keys that a run shares with another one that cfg.RESUME names; `kept_keys` of its trainer too
_KEPT = (
    "TRAINER.NAME", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "DATASET.SOURCE_DOMAINS",
    "DATASET.TARGET_DOMAINS", "MODEL.BACKBONE.NAME",
)  # fmt: skip


def differs(path, old, trainer, inputs=()):
    """Does the recipe of `trainer` differ from `old`, {key: value} of the earlier run at `path`, and its `inputs`?

    UserError where it must not: at all where an interrupted run goes on by itself, in _KEPT where cfg.RESUME names
    another one.
    """
    asked = recipe(trainer.cfg) | {"RESUME": old.get("RESUME", "")}
    lines = differing({"recipe": old, "inputs": dict(inputs)}, asked, trainer._progress.inputs)
    message = f"{path} is of a run with another config: {'; '.join(lines)}"
    if lines and not trainer.cfg.RESUME:
        raise UserError(f"{message}. {GO_ON}")
    if other := [line for line in lines if line.startswith((*_KEPT, *trainer.kept_keys))]:
        raise UserError(f"{path} is of another run, which this one cannot go on with: {'; '.join(other)}")
    if lines:
        get_logger().info(message)
    return bool(lines)


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


def best_files(trainer):
    """{model: path of its best weights}."""
    return {name: os.path.join(trainer.output_dir, name, BEST) for name in trainer._models}


def best_digests(trainer):
    """{model: digest of its best weights} that the main process has just written."""
    there = {name: file for name, file in best_files(trainer).items() if is_main() and os.path.isfile(file)}
    return {name: checkpoint_digest(file) for name, file in there.items()}


def check_best(trainer, digests, epochs=None):
    """UserError where the best weights are not those with these digests (None: not known), that the run has written.

    epochs: of resume.pt. Those of the next one were written after it, right before the run was killed: they are found
    again, and nothing is the best until then.
    """
    for name, file in best_files(trainer).items() if is_main() else ():
        there = os.path.isfile(file)
        if name not in digests or there and digests[name] in (None, checkpoint_digest(file)):
            continue
        if there and epochs is not None and load_checkpoint(file).get("epoch") == epochs + 1:
            trainer.best_result = -math.inf
            continue
        what = "is not the one that this run wrote" if there else "is gone"
        raise UserError(f"{file}, the best model so far, {what}: put it back, or --overwrite starts the run afresh")


def take_best(trainer):
    """The best model so far is the other run's: a copy of it, or its result is forgotten where it is gone."""
    files = [os.path.join(trainer.cfg.RESUME, name, BEST) for name in trainer._models]
    if not all(map(os.path.isfile, files)):
        trainer.best_result = -math.inf
    elif trainer.best_result > -math.inf and is_main():
        for file, ours in zip(files, best_files(trainer).values(), strict=True):
            atomic_save(load_checkpoint(file), ours)
