"""Commands of registered trainers that have no bash scripts: made of what their classes say."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from scripts.commands import COMMANDS, SCRIPTS

from . import base2new, protocols, robust
from .base2new import FIRST, Scripts
from .command import Command, names_in


def recipes_of(cls: type) -> str:
    """The folder of configs/trainers that has a trainer's yamls: its own, or that of the class it derives from.
    UserError: there is none."""
    from dassl.utils import UserError

    for base in cls.__mro__:
        if presets_in(base.__name__):
            return base.__name__
    raise UserError(f"{cls.__name__} has no recipe: give it a yaml in configs/trainers/{cls.__name__}")


def presets_in(trainer: str) -> list[str]:
    """The yamls of a trainer, without those that others are based on."""
    return [name for name in names_in(f"trainers/{trainer}") if not name.startswith(("base", "_"))]


def presets_of(trainer: str, toy: bool) -> dict[str, str]:
    """Preset -> CFG, as the class says whose yamls a stage 2 has; toy: on the built-in benchmark."""
    from dassl.engine import TRAINER_REGISTRY

    bases = TRAINER_REGISTRY.get(trainer).__mro__
    recipes = recipes_of(bases[0])
    said = next(vars(base) for base in bases if base.__name__ == recipes)
    return toy and said.get("toy_presets") or said.get("presets") or {name: name for name in presets_in(recipes)}


def add_all() -> None:
    """The commands of every pair that has a recipe."""
    from dassl.utils import UserError
    from mergetune.stage2 import method_pairs

    for pair in method_pairs().values():
        with contextlib.suppress(UserError):
            add_commands(pair.stage2, pair.protocols)


def add_commands(trainer: str, runs: Sequence[str]) -> None:
    """Make a trainer's commands of the protocols `runs`, and those of its stage 1, where there are none."""
    from dassl.engine import TRAINER_REGISTRY
    from mergetune.stage2 import stage1_of

    cls = TRAINER_REGISTRY.get(trainer)
    first, bases = stage1_of(cls), [base.__name__ for base in cls.__mro__]
    if first:
        add_commands(first, runs)
    if trainer in SCRIPTS or trainer in robust.ROBUST:
        return
    recipes = recipes_of(cls)
    if "robust" in runs:
        cfg = {} if first or recipes != trainer else {"CFG": presets_in(recipes)[0]}
        made = robust.commands_of(trainer, trainer, continues=bool(first), recipes=recipes)
        made = {name: replace(command, defaults=command.defaults | cfg) for name, command in made.items()}
        COMMANDS.update(made | COMMANDS)
        return
    like = next((SCRIPTS[base].train for base in bases if base in SCRIPTS), SCRIPTS["CoOp"].train)
    cfg = presets_in(recipes)[0] if recipes == trainer else like.defaults.get("CFG") or presets_in(recipes)[0]
    taught = {key: value for key, value in like.defaults.items() if key in ("SHOTS", "TEACHER_DIR")}
    train = Command(
        arguments=("DATASET", "SEED"),
        forms=(("DATASET", "SEED", "CFG"),),
        defaults={"CFG": cfg, **taught},
        trainer=trainer,
        recipes=recipes,
        output=f"output_{trainer}/base2new/train_base/{{DATASET}}/shots_{{SHOTS}}/{trainer}/{{CFG}}/seed{{SEED}}",
        subset=like.subset,
        stage1=FIRST if first else "",
        teacher=like.teacher,
        pairs=like.pairs[:2] if like.teacher else (),
    )
    SCRIPTS[trainer] = Scripts(trainer, "", train)
    COMMANDS.update(base2new.commands_of(SCRIPTS[trainer]))
    if {"cross", "dg", "fewshot"} & {*runs}:
        COMMANDS.update(protocols.commands_of(SCRIPTS[trainer]))
