"""What one script runs, as data: its arguments, the folder it writes, and whose run it needs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dassl.config import leaves, read_yaml
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, expand_user, split_pairs

ROOT = Path(__file__).resolve().parent.parent.parent
# Arguments that a run shares with the stage 1 it continues; all others are each stage's own.
CARRIED = ("DATASET", "SEED", "SHOTS", "SOURCE", "OUTPUT")

STAGE1 = "STAGE1_"  # prefix of an argument that is stage 1's
SHOTS_KEY = "DATASET.NUM_SHOTS"
OTHERS_KEY = "TEST.OTHERS"  # of an evaluation on new classes: its argument OTHERS
OVERWRITE = "--overwrite"  # for every script: does again what was run otherwise, and what came of it
# What a script itself tells train.py -> what says it; behind `--` it would contradict the folder.
SAID_BY = {
    **dict.fromkeys(("SEED", "--seed"), "the argument or variable SEED"),
    **dict.fromkeys(("DATASET.NAME", "--dataset-config-file"), "the argument DATASET"),
    **dict.fromkeys(("TRAINER.NAME", "--trainer"), "the script"),
    "--config-file": "the argument CFG",
    **dict.fromkeys(("DATASET.SUBSAMPLE_CLASSES", "TRAINER.MODAL"), "the script (and --protocol of train.sh)"),
    **dict.fromkeys(("DATASET.ROOT", "--root"), "the variable DATA"),
    **dict.fromkeys(("OUTPUT_DIR", "--output-dir"), "the variable OUTPUT"),
}

Arguments = dict[str, str]


@dataclass(frozen=True)
class Command:
    """One script. Strings are templates over its arguments, e.g. "{DATASET}"."""

    arguments: tuple[str, ...]  # in order
    output: str  # below OUTPUT
    trainer: str = ""
    script: str = ""  # what the scripts of its method are called, e.g. "coop_LMC/{}_coop"
    recipes: str = ""  # folder of configs/trainers; default: the trainer's
    subset: str = "all"  # base, new or all
    protocol: str = "base2novel"  # cfg.TRAINER.MODAL
    evaluates: str = ""  # name of the command whose run this one evaluates
    stage1: str = ""  # what this one continues, among the scripts of its trainer's stage 1
    teacher: str = ""  # name of the command whose run teaches this one
    pairs: Mapping[str, str] = field(default_factory=dict)  # config keys -> the argument that is the value of each
    forms: tuple[tuple[str, ...], ...] = ()  # other lists of arguments that are taken, told apart by their number
    defaults: Mapping[str, str | Callable[[Arguments], str]] = field(default_factory=dict)  # of arguments left out
    seeds: Callable[[], Sequence[str]] = tuple  # looped over where SEED is no argument
    flags: tuple[str, ...] = ()  # words that may stand anywhere before --: the argument FLAGS
    free: bool = False  # all words before -- are the module's own: the argument WORDS
    eval_only: bool = False  # evaluates without a checkpoint of its own
    module: str = ""  # run this instead of train.py,
    words: Callable[[Arguments], list[str]] | None = None  # with these arguments before --root and --out
    lines: Callable[[list[str]], list[list[str]]] | None = None  # what the module, given these words, runs itself
    # what a finished run has left: in its folder, or anywhere, where the module itself skips what is finished
    marker: str | Callable[[Arguments], list[Path]] = "results.json"
    follows: Callable[[Arguments], str] | None = None  # name of the command whose stream this one evaluates

    @property
    def config(self) -> str:
        """The method's yaml, below configs/trainers."""
        return f"{self.recipes or self.trainer}/{{CFG}}" if self.trainer else ""

    def named(self, what: str) -> str:
        """Name of a script of its method, e.g. of "base2new_test"."""
        return self.script.format(what)

    @property
    def scores_new(self) -> bool:
        """Does it evaluate on new classes?"""
        return self.subset == "new" and bool(self.evaluates or self.eval_only)

    def complete(self, arguments: Arguments) -> Arguments:
        """These arguments, and the defaults of the rest."""
        arguments = dict(arguments)
        for name, value in self.defaults.items():
            if name not in arguments:
                arguments[name] = value(arguments) if callable(value) else value
        return arguments


COMMANDS: dict[str, Command] = {}  # by the script's name; filled in __init__.py


def checked_pairs(words: Sequence[str], free: Sequence[str] = ()) -> list[str]:
    """KEY VALUE words of those that are KEY VALUE or KEY=VALUE. UserError for a key without a value, and for one that
    the script says itself, if it is not `free`."""
    pairs = split_pairs(words)
    for key in pairs[::2]:
        where = SAID_BY.get(key.partition("=")[0])
        if where and key not in free:
            raise UserError(f"{key}: {where} says it")
    if len(pairs) % 2:
        raise UserError(f"{pairs[-1]} has no value")
    return pairs


def folder_keys(command: Command) -> dict[str, str]:
    """Config keys whose value a command's folder names -> its argument."""
    keys = {key: name for key, name in command.pairs.items() if f"{{{name}}}" in command.output}
    if "SHOTS" in (*command.defaults, *command.arguments):
        keys[SHOTS_KEY] = "SHOTS"
    return keys


def canonical(command: Command, key: str) -> str:
    """A config key by the name that the command's trainer has for it now."""
    if command.module:
        return key
    return getattr(TRAINER_REGISTRY.get(command.trainer), "ALIASES", {}).get(key, key)


def follow(
    command: Command, said: Arguments, pairs: Sequence[str], others: Sequence[Command], typed: bool = False
) -> tuple[Arguments, list[str]]:
    """Arguments and KEY VALUE words, with the keys that the folder names as arguments, so that it says what is run.
    others: commands whose runs this one builds on; their folders follow too.

    UserError: an argument that was `typed` has another value.
    """
    arguments, rest = dict(said), []
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        for other in others:
            if name := folder_keys(other).get(canonical(other, key)):
                arguments.setdefault(STAGE1 + name, value)
        name = folder_keys(command).get(canonical(command, key))
        if key == OTHERS_KEY and command.scores_new:
            arguments |= {"OTHERS": value} if typed or takes_others(command, arguments) else {}
            continue
        if name is None:
            rest += [key, value]
        elif typed and said.get(name, value) != value:
            raise UserError(f"{key} {value}: the argument {name} says {said[name]}, give it there")
        else:
            arguments[name] = value
    return arguments, rest


def takes_others(command: Command, arguments: Arguments) -> bool:
    """Is it scored on other data sets? Zero-shot CLIP is once, with the templates that it usually has."""
    zero_shot = command.eval_only and not command.stage1
    config = command.config.format(**command.complete(arguments))
    return command.scores_new and not (zero_shot and "TRAINER.ZEROSHOT.TEMPLATES" in yaml_values(config))


def others(command: Command, arguments: Arguments) -> str:
    """The value of TEST.OTHERS: the argument OTHERS, auto on the built-in benchmark, else ""."""
    usual = "auto" if arguments["DATASET"].startswith("toy_") and takes_others(command, arguments) else ""
    return arguments.get("OTHERS", usual) if command.scores_new else ""


def of_stage1(arguments: Arguments) -> Arguments:
    """The arguments that are stage 1's, by the names that they have there."""
    return {key.removeprefix(STAGE1): value for key, value in arguments.items() if key.startswith(STAGE1)}


def first_arguments(first: Command, arguments: Arguments) -> Arguments:
    """The arguments of the command whose run one with these arguments continues or learns from."""
    arguments = of_source(arguments)
    carried = [key for key in CARRIED if key in arguments and (key != "SHOTS" or key in first.arguments)]
    return first.complete({key: arguments[key] for key in carried} | of_stage1(arguments))


def of_source(arguments: Arguments) -> Arguments:
    """The arguments of the training behind an evaluation: on the source, where there is one."""
    return arguments | {"DATASET": arguments["SOURCE"]} if "SOURCE" in arguments else arguments


def folder(variable: str, default: str) -> str:
    """DATA or OUTPUT: as the environment gives it, else in the clone."""
    return os.path.abspath(expand_user(os.environ[variable])) if os.environ.get(variable) else str(ROOT / default)


def run_folder(command: Command, arguments: Arguments) -> Path:
    """Where a command writes: below OUTPUT, in the folder of its SWEEP if it is part of one."""
    root, output = arguments.get("OUTPUT") or folder("OUTPUT", "output"), command.output
    usual = command.defaults.get("SHOTS")
    if usual and "{SHOTS}" not in output and arguments.get("SHOTS", usual) != usual:
        output = output.replace("/seed", "/shots_{SHOTS}/seed")
    epoch = arguments.get("LOADEP", "") if command.evaluates else ""
    epoch = f"epoch{epoch}" if epoch.isdecimal() else epoch and f"{epoch}_epoch"  # epoch3, last_epoch
    return Path(root, arguments.get("SWEEP", "")) / output.format(**arguments) / epoch


def source_of(arguments: Arguments) -> str:
    """The data set that cross-data-set models are trained on: ImageNet, on the built-in benchmark ToyObjects."""
    return "toy_objects" if arguments["DATASET"].startswith("toy_") else "imagenet"


def names_in(kind: str) -> list[str]:
    """The yaml files of a folder of configs/, without their ending."""
    return sorted(path.stem for path in (ROOT / "configs" / kind).glob("*.yaml"))


@lru_cache
def yaml_values(config: str) -> dict[str, str]:
    """Every key of a method's yaml, e.g. "TRAINER.LMC.LAMBDA", with its value as a command line would say it."""
    tree = read_yaml(ROOT / "configs" / "trainers" / f"{config}.yaml")
    return {key: str(value) for key, value in leaves(tree)}


def recipe(command: Command, cfg: str) -> Arguments:
    """The arguments that repeat what a command's yaml says: CFG, and the keys that it passes on.

    Those with a default of their own for each data set are left to it.
    """
    values = yaml_values(command.config.format(CFG=cfg))
    named = {name: values[key] for key, name in command.pairs.items() if key in values}
    return {"CFG": cfg} | {name: value for name, value in named.items() if not callable(command.defaults.get(name))}
