"""Commands of registered trainers that have no bash scripts: made of what their classes say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import mergetune
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from scripts.commands import COMMANDS, TRAININGS

from . import protocols, robust
from .command import Command, names_in


def recipes_of(trainer: str) -> tuple[type, list[str]]:
    """The class whose folder of configs/trainers has a trainer's yamls, its own or one of the same stage that it
    derives from; and the yamls, without those that others are based on. UserError: there are none."""
    stage1_of, cls = mergetune.stage2.stage1_of, TRAINER_REGISTRY.get(trainer)
    for base in (base for base in cls.__mro__ if bool(stage1_of(base)) == bool(stage1_of(cls))):
        if names := [name for name in names_in(f"trainers/{base.__name__}") if not name.startswith(("base", "_"))]:
            return base, names
    raise UserError(f"{trainer} has no recipe: give it a yaml in configs/trainers/{trainer}")


def presets_of(trainer: str, toy: bool) -> dict[str, str]:
    """Preset -> CFG of a stage 2, as the class says whose yamls it has; toy: on the built-in benchmark."""
    cls, names = recipes_of(trainer)
    return toy and vars(cls).get("toy_presets") or vars(cls).get("presets") or {name: name for name in names}


def know(names: Iterable[str]) -> None:
    """Make the commands of every pair that has a recipe, if COMMANDS lacks one of the names: a process that is given a
    job has planned none."""
    if COMMANDS.keys() >= {*names}:
        return
    for pair in mergetune.stage2.method_pairs().values():
        with contextlib.suppress(UserError):
            add_pair(pair)


def add_pair(pair: mergetune.stage2.MethodPair) -> None:
    """Make the commands of a pair, of its teacher too. UserError: a trainer of it has no recipe."""
    for trainer in filter(None, (pair.taught_by, pair.stage2)):
        add_commands(trainer, pair.protocols)


def add_commands(trainer: str, runs: Sequence[str]) -> None:
    """Make a trainer's commands of the protocols `runs`, and those of its stage 1, where there are none."""
    if trainer in TRAININGS:
        return
    bases = TRAINER_REGISTRY.get(trainer).__mro__
    if first := mergetune.stage2.stage1_of(bases[0]):
        add_commands(first, runs)
    recipes, names = recipes_of(trainer)
    cfg = names[0] if recipes is bases[0] else ""  # else that of the scripts of the class it derives from
    fields = {"recipes": recipes.__name__}
    if "robust" in runs:
        TRAININGS[trainer] = robust.training(trainer, trainer, bool(first), cfg, **fields)
        COMMANDS.update(robust.commands_of(TRAININGS[trainer]))
        return
    known = [TRAININGS[base.__name__] for base in bases if base.__name__ in TRAININGS]
    like = next((train for train in known if train.protocol != "robust"), TRAININGS["CoOp"])
    kept = {key: value for key, value in like.defaults.items() if key in ("SHOTS", "TEACHER_DIR")}
    if like.teacher:
        fields |= {"teacher": like.teacher, "pairs": {key: name for key, name in like.pairs.items() if name in kept}}
    TRAININGS[trainer] = Command(
        script=f"{trainer}/{{}}",
        arguments=("DATASET", "SEED"),
        forms=(("DATASET", "SEED", "CFG"),),
        defaults={"CFG": cfg or like.defaults.get("CFG", names[0])} | kept,
        trainer=trainer,
        output=f"output_{trainer}/base2new/train_base/{{DATASET}}/shots_{{SHOTS}}/{trainer}/{{CFG}}/seed{{SEED}}",
        subset=like.subset,
        stage1="base2new_train" if first else "",
        **fields,
    )
    COMMANDS.update(protocols.base2new(TRAININGS[trainer]))
    if {"cross", "dg", "fewshot"} & {*runs}:
        COMMANDS.update(protocols.other_protocols(TRAININGS[trainer]))
