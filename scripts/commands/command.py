"""What one script runs, as data: its arguments, the folder it writes, and whose run it needs."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Arguments that a run shares with the stage 1 it continues; all others are each stage's own.
CARRIED = ("DATASET", "SEED", "SHOTS", "SOURCE", "OUTPUT")

Arguments = dict[str, str]


@dataclass(frozen=True)
class Command:
    """One script. Strings are templates over its arguments, e.g. "{DATASET}"."""

    arguments: tuple[str, ...]  # in order
    output: str  # below OUTPUT
    trainer: str = ""
    config: str = ""  # below configs/trainers
    subset: str = "all"  # base, new or all
    protocol: str = "base2novel"  # cfg.TRAINER.MODAL
    evaluates: str = ""  # name of the command whose run this one evaluates
    stage1: str = ""  # name of the command whose run this one continues
    teacher: str = ""  # name of the command whose run teaches this one
    pairs: tuple[str, ...] = ()
    forms: tuple[tuple[str, ...], ...] = ()  # other lists of arguments that are taken, told apart by their number
    defaults: Mapping[str, str | Callable[[Arguments], str]] = field(default_factory=dict)  # of arguments left out
    folders: tuple[str, ...] = ()  # arguments that are paths, relative to where the script was called
    seeds: tuple[str, ...] = ()  # looped over where SEED is no argument
    environment: Mapping[str, str] = field(default_factory=dict)  # arguments from variables, SEEDS too; their defaults
    flags: tuple[str, ...] = ()  # words that may stand anywhere before --: the argument FLAGS
    free: bool = False  # all words before -- are the module's own: the argument WORDS
    eval_only: bool = False  # evaluates without a checkpoint of its own
    module: str = ""  # run this instead of train.py,
    words: Callable[[Arguments], list[str]] | None = None  # with these arguments before --root and --out
    lines: Callable[[list[str]], list[list[str]]] | None = None  # what the module, given these words, runs itself
    marker: str = "results.json"  # what a finished run has left in its folder; "": the module skips what is finished
    left: Callable[[Arguments], list[Path]] | None = None  # in the marker's place, where that is ""
    follows: Callable[[Arguments], str] | None = None  # name of the command whose stream this one evaluates

    def from_environment(self) -> Arguments:
        """Arguments that the environment gives."""
        return {name: os.environ.get(name) or value for name, value in self.environment.items()}

    def seeds_to_run(self) -> tuple[str, ...]:
        """The seeds to loop over: the declared ones, or SEEDS (or SEED) of the environment."""
        if not self.environment:
            return self.seeds
        return tuple((os.environ.get("SEEDS") or os.environ.get("SEED") or "1").split())

    def marks(self, arguments: Arguments) -> list[Path]:
        """The files that a finished run has left."""
        if self.left:
            return self.left(arguments)
        return [run_folder(self, arguments) / self.marker] if self.marker else []

    def complete(self, given: Arguments) -> Arguments:
        """All arguments: the given ones, and the defaults of the rest."""
        arguments = dict(given)
        for name, value in self.defaults.items():
            if name not in arguments:
                arguments[name] = value(arguments) if callable(value) else value
        return arguments


def folder(variable: str, default: str) -> str:
    """DATA or OUTPUT: as the environment gives it, else in the clone."""
    from dassl.utils import expand_user

    return os.path.abspath(expand_user(os.environ[variable])) if os.environ.get(variable) else str(ROOT / default)


def run_folder(command: Command, arguments: Arguments) -> Path:
    """Where a command writes: below OUTPUT, in the folder of its SWEEP if it is part of one."""
    root = arguments.get("OUTPUT") or folder("OUTPUT", "output")
    return Path(root, arguments.get("SWEEP", "")) / command.output.format(**arguments)


def source_of(arguments: Arguments) -> str:
    """The data set that cross-data-set models are trained on: ImageNet, on the built-in benchmark ToyObjects."""
    return "toy_objects" if arguments["DATASET"].startswith("toy_") else "imagenet"


@lru_cache
def yaml_values(config: str) -> dict[str, str]:
    """Every key of a method's yaml, e.g. "TRAINER.LMC.LAMBDA", with its value as a command line would say it."""
    from dassl.config import leaves, read_yaml  # late: most scripts need no value of their yaml

    tree = read_yaml(ROOT / "configs" / "trainers" / f"{config}.yaml")
    return {key: str(value) for key, value in leaves(tree)}


def recipe(command: Command, cfg: str) -> Arguments:
    """The arguments that repeat what a command's yaml says: CFG, and the keys that it passes on.

    Those with a default of their own for each data set are left to it.
    """
    values = yaml_values(command.config.format(CFG=cfg))
    passed = zip(command.pairs[::2], (word.strip("{}") for word in command.pairs[1::2]), strict=True)
    named = {name: values[key] for key, name in passed if key in values}
    return {"CFG": cfg} | {name: value for name, value in named.items() if not callable(command.defaults.get(name))}
