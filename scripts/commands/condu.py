"""ConDU: whole MTIL streams, their evaluation, and the toy stream.

Each seed is one process that runs what its folder has not finished. CFG chooses another recipe, for all scripts alike.
"""

import importlib
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import condu
from condu.orders import tasks_of

from .command import OVERWRITE, Arguments, Command, run_folder

# Script -> its CFG; eval_MTIL_FT evaluates whatever stream its ORDER, CFG and SEED name.
TRAINING = {name: name.lower() for name in ("MTIL_FT", "MTIL_LoRA", "fewshot_MTIL_FT", "fewshot_MTIL_LoRA")}
EVALUATION = {
    f"{prefix}MTIL_{kind}": (f"mtil_{kind.lower()}", protocol)
    for prefix, protocol in (("eval_", "mtil"), ("eval_agnostic_", "agnostic"))
    for kind in ("FT", "LoRA")
}


def variable(name: str, usual: str) -> Callable[[Arguments], str]:
    """A default: the environment's."""
    return lambda arguments: os.environ.get(name) or usual


def seeds() -> list[str]:
    """SEEDS of the environment, or SEED."""
    return (os.environ.get("SEEDS") or os.environ.get("SEED") or "1").split()


def _words(action: str, arguments: Arguments, *more: str) -> list[str]:
    where = ("--order", arguments["ORDER"], "--cfg", arguments["CFG"], "--seed", arguments["SEED"])
    return [action, *where, *more, *arguments["FLAGS"].split()]


def _trained(arguments: Arguments) -> list[Path]:
    """The results of every session."""
    home = run_folder(STREAM, arguments) / "sessions"
    return [home / f"{index}_{task}" / "results.json" for index, task in enumerate(tasks_of(arguments["ORDER"]))]


DEFAULTS = {
    "ORDER": "I",
    "LABEL": lambda arguments: arguments["ORDER"].replace(",", "-"),
    "FLAGS": "",
    "GPUS": variable("GPUS", "1"),
}
STREAM = Command(
    arguments=("ORDER",),
    forms=((),),
    seeds=seeds,
    flags=("--keep-experts", OVERWRITE),
    trainer="ConDU",
    output="mtil/{CFG}/order_{LABEL}/seed{SEED}",
    protocol="mtil",
    module="scripts.condu.stream",
    words=lambda arguments: _words("train", arguments, "--gpus", arguments["GPUS"]),
    lines=lambda argv: importlib.import_module("scripts.condu.stream").session_lines(argv),
    marker=_trained,
)


def evaluation(cfg: str, protocol: str) -> Command:
    trains = {trained: script for script, trained in TRAINING.items()}

    def evaluated(arguments: Arguments) -> list[Path]:
        """The results of every vote, and of every label space where the task is unknown."""
        out = run_folder(STREAM, arguments)
        middles = [f"_{labels}" for labels in condu.evaluation.LABELS] if protocol == "agnostic" else [""]
        votes = condu.voting.PRESETS
        return [out / f"{protocol}{middle}_{vote}" / "results.json" for middle in middles for vote in votes]

    return replace(
        STREAM,
        flags=(OVERWRITE,),
        defaults=DEFAULTS | {"CFG": variable("CFG", cfg)},
        output=f"{STREAM.output}/{protocol}",
        words=lambda arguments: _words(f"eval-{protocol}", arguments, "--run", str(run_folder(STREAM, arguments))),
        lines=None,
        marker=evaluated,
        follows=lambda arguments: f"condu/{trains.get(arguments['CFG'], 'MTIL_FT')}",
    )


def toy(name: str, arguments: str, output: str) -> Command:
    return Command(
        arguments=(arguments,),
        free=True,
        seeds=seeds,
        output=output,
        protocol="mtil",
        module=f"scripts.condu.{name}",
        words=lambda arguments: ["--seed", arguments["SEED"], *shlex.split(arguments["WORDS"])],
        marker=lambda arguments: [],
    )


COMMANDS = {
    **{f"condu/{n}": replace(STREAM, defaults=DEFAULTS | {"CFG": variable("CFG", c)}) for n, c in TRAINING.items()},
    **{f"condu/{name}": evaluation(*facts) for name, facts in EVALUATION.items()},
    "condu/toy_stream": toy("toy_stream", "[--orders N] [--tasks a,b,c] [--lora] [--seeds K ...]", "mtil"),
    "condu/toy_rates": toy("toy_rates", "[--choose] [--lora] [--tasks a,b,c] [--rates R ...]", "mtil_rates"),
}
