"""Run one command of `commands/`:  python scripts/run.py NAME ARGUMENT... [ARGUMENT=VALUE ...] [-- KEY VALUE ...]

ARGUMENT=VALUE gives one that has a default by its name: CFG=paper, SHOTS=4, SWEEP=sweeps/tau/TAU_0.3.
From the environment: DATA (default data/ in the clone), OUTPUT (default output/), DRY_RUN=1 to print only.
A finished run is skipped; a killed one continues.
"""

import fnmatch
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import expand_user  # noqa: E402
from scripts.commands import COMMANDS, Command, folder, run_folder, stage1_command  # noqa: E402
from scripts.commands.command import OVERWRITE, STAGE1, Arguments, checked_pairs, follow, names_in  # noqa: E402
from scripts.commands.registered import know  # noqa: E402
from scripts.jobs import STREAM, Job, needs, program, settle, start  # noqa: E402
from scripts.stopping import end_with_workflow  # noqa: E402

NUMBERS = ("SEED", "SHOTS", "LOADEP", "N", "GPUS")
PLACES = ("OUTPUT", "SWEEP")  # arguments of every command: where its folder lies
NAMED = re.compile(r"[A-Z][A-Z0-9_]*=")


class Usage(Exception):
    """A wrong command line; the message is its one line."""


def usage(name: str, problem: str = "") -> Usage:
    """The usage line of a script, with what is wrong behind it."""
    command = COMMANDS[name]
    script = f"scripts/{name}.sh" if has_script(name) else f"scripts/run.py {name}"
    forms = ", or ".join(" ".join(form) or "none" for form in (command.arguments, *command.forms))
    flags = "".join(f" [{flag}]" for flag in dict.fromkeys((*command.flags, *(() if command.free else (OVERWRITE,)))))
    return Usage(f"usage: {script} {forms}{flags} [-- KEY VALUE ...]{problem and f': {problem}'}")


def has_script(name: str) -> bool:
    """Is a bash script of the command there? Of a trainer without any, this program runs it."""
    return (ROOT / "scripts" / f"{name}.sh").is_file()


def help_of(name: str) -> str:
    """What the head of a script says, and its usage line; of no script, what this program says."""
    if name not in COMMANDS:
        return f"{__doc__}\nNAME: {', '.join(COMMANDS)}"
    if not has_script(name):
        return str(usage(name))
    lines = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8").splitlines()[1:]
    return "\n".join([str(usage(name)), "", *(line[2:] for line in lines if line.startswith("#"))])


def parse(name: str, words: list[str]) -> tuple[list[Arguments], list[str]]:
    """The arguments by name, once for each seed that the script runs, and the KEY VALUE pairs behind `--`."""
    command = COMMANDS[name]
    cut = words.index("--") if "--" in words else len(words)
    words, pairs = words[:cut], words[cut + 1 :]
    if command.free:
        named = {"WORDS": shlex.join(words)}
    else:
        named = dict(word.split("=", 1) for word in words if NAMED.match(word))
        placed = [word for word in words if word not in command.flags and not NAMED.match(word)]
        form = next((form for form in (command.arguments, *command.forms) if len(form) == len(placed)), None)
        if form is None:
            raise usage(name, f"{len(placed)} arguments" if placed else "")
        named |= dict(zip(form, placed, strict=True))
    known = known_arguments(command, named)
    if wrong := named.keys() - {*known, "WORDS"}:
        raise usage(name, f"no argument {', '.join(sorted(wrong))}; known: {', '.join(known)}")
    in_sweep = "SWEEP" in named  # whose folder names its keys
    try:
        pairs = checked_pairs(pairs, ("TRAINER.MODAL",) if in_sweep else ())
        if not in_sweep:
            named, pairs = follow(command, named, pairs, builds_on(command, named), typed=True)
    except ValueError as error:
        raise usage(name, str(error)) from None
    named = command.from_environment() | named
    if flags := [word for word in words if word in command.flags]:
        named["FLAGS"] = " ".join(flags)
    named |= {key: os.path.abspath(expand_user(named[key])) for key in command.folders if key in named}
    seeds = [{}] if "SEED" in named else [{"SEED": seed} for seed in command.seeds_to_run()]
    runs = [command.complete(named | seed) for seed in seeds]
    for run in runs:
        check(name, run)
    return runs, pairs


def check(name: str, arguments: Arguments) -> None:
    """Refuse a number that is none, an unknown data set, order or CFG, and what leads out of OUTPUT."""
    command = COMMANDS[name]
    for key in NUMBERS:
        word, last = arguments.get(key, ""), key == "LOADEP"
        if word and not word.isdecimal() and not (last and word == "last"):
            raise usage(name, f"{key} is {word!r}, expected a whole number{' or last' * last}")
    for key in ("DATASET", "SOURCE"):
        known = names_in("datasets")
        if arguments.get(key, known[0]) not in known:
            raise usage(name, f"unknown data set {arguments[key]}; known: {', '.join(known)}")
    if "ORDER" in arguments:
        from condu.orders import tasks_of  # late: imports torch

        try:
            tasks_of(arguments["ORDER"])
        except ValueError as error:
            raise usage(name, str(error)) from None
    evaluated = command.evaluates.format(**arguments)
    if evaluated and evaluated not in COMMANDS:
        known = fnmatch.filter(COMMANDS, re.sub(r"{\w+}", "*", command.evaluates))
        raise usage(name, f"{evaluated} is no script; known: {', '.join(known)}")
    config = f"trainers/{command.config.format(**arguments)}"
    if command.config and Path(config).name not in names_in(os.path.dirname(config)):
        raise usage(name, f"unknown CFG {Path(config).name}; known: {', '.join(names_in(os.path.dirname(config)))}")
    root = os.path.abspath(arguments.get("OUTPUT") or folder("OUTPUT", "output"))
    if root != os.path.commonpath([root, os.path.abspath(run_folder(command, arguments))]):
        raise usage(name, f"{run_folder(command, arguments)} does not lie below OUTPUT, {root}")


def known_arguments(command: Command, arguments: Arguments) -> list[str]:
    """The arguments of a command by name: of all its forms, with a default or from the environment; STAGE1_X: X of
    the stage 1 that it continues."""
    every = [*command.arguments, *sum(command.forms, ()), *command.defaults, *command.environment, *PLACES]
    every += ["LOADEP"] if command.evaluates and not command.module else []  # an epoch, or last, to evaluate
    every += ["OTHERS"] * command.scores_new
    every += [STAGE1 + key for before in builds_on(command, arguments) for key in before.defaults]
    return [*dict.fromkeys(["SEED", *every])]


def builds_on(command: Command, arguments: Arguments) -> list[Command]:
    """The commands whose runs it continues, learns from or merges."""
    merged = command.evaluates.format_map(defaultdict(str, arguments)) if command.module else ""
    return [COMMANDS[name] for name in (stage1_command(command), command.teacher, merged) if name in COMMANDS]


def script_line(name: str, arguments: Arguments, pairs: Sequence[str] = (), python: str = "python") -> str:
    """The shell line of a command with these arguments: by place, then by name those that differ from the default."""
    command = COMMANDS[name]
    placed = {key: arguments[key] for key in command.arguments}
    usual = command.complete(placed)
    known = [key for key in known_arguments(command, arguments) if key in arguments]
    named = [f"{key}={arguments[key]}" for key in known if usual.get(key) != arguments[key]]
    tail = ["--", *pairs] if pairs else []
    program = f"bash scripts/{name}.sh" if has_script(name) else f"{python} scripts/run.py {name}"
    return " ".join([program, *map(shlex.quote, [*placed.values(), *named, *tail])])


def job_lines(job: Job, python: str = "python") -> Iterator[str]:
    """A job's script, and its path card where one belongs to it."""
    yield script_line(job.command, dict(job.arguments), job.pairs, python)
    if job.card:
        others = ["--others", *job.others] if job.others else []
        yield f"{python} -m mergetune.path_card {shlex.join([str(job.folder), *others])}"


def ready(run: str | Path) -> bool:
    """Is there a trained model: a finished run of ours, or other people's checkpoint files?"""
    run = Path(run)
    if run.is_file():
        return True
    files = [*run.glob("model*.pth.tar*"), *run.glob("*/model*.pth.tar*")]
    return (run / "results.json").is_file() or bool(files) and not (run / "resume.pt").exists()


def missing(name: str, arguments: Arguments, pairs: list[str]) -> str:
    """What has to run first, if it has not: the line that says so."""
    # a stream's evaluation says itself which sessions it lacks
    given = {"teacher": "TRAINER.PROMPTKD.TEACHER_DIR", "stage-1 checkpoint": "RESUME_COOP"}
    for what, run, other, own in needs(name, arguments):
        if what != STREAM and not ready(run) and given.get(what) not in pairs:
            return f"no {what} in {run}; make it with:  {script_line(other, own)}"
    return ""


def run_one(name: str, arguments: Arguments, pairs: list[str], overwrite: bool = False) -> int:
    """Exit status of one run of a script."""
    argv = ["python", *program(name, arguments, pairs)]
    command = COMMANDS[name]
    if os.environ.get("DRY_RUN") == "1":
        for line in command.lines(argv[3:]) if command.lines else [argv]:
            print(shlex.join(line))
        return 0
    os.chdir(ROOT)
    job = Job(name, arguments, tuple(pairs))
    if command.marker:  # else it compares, and skips, what is there itself
        settle([job], overwrite)
    if command.marker and job.done:
        print(f"{job.folder} is finished: skipped (remove it to run again)")
        return 0
    if need := missing(name, arguments, pairs):
        print(f"error: {need}", file=sys.stderr)
        return 1
    start(name, arguments, pairs)
    return 0


def main(words: list[str]) -> int:
    """Exit status of one script. UserError: a run fails."""
    if words and not words[0].startswith("-"):
        know(words[:1])
    if {"-h", "--help"} & set(words) and not (words[0] in COMMANDS and COMMANDS[words[0]].free):
        print(help_of(words[0]))
        return 0
    try:
        if not words or words[0] not in COMMANDS:
            raise Usage(f"usage: scripts/run.py NAME ARGUMENT... [-- KEY VALUE ...]; NAME: {', '.join(COMMANDS)}")
        cut = words.index("--") if "--" in words else len(words)
        overwrite = OVERWRITE in words[:cut] and OVERWRITE not in COMMANDS[words[0]].flags
        words = [word for word in words[:cut] if word != OVERWRITE or not overwrite] + words[cut:]
        runs, pairs = parse(words[0], words[1:])
    except Usage as error:
        print(error, file=sys.stderr)
        return 2
    return next((status for run in runs if (status := run_one(words[0], run, pairs, overwrite))), 0)


if __name__ == "__main__":
    from dassl.utils import errors_in_one_line

    end_with_workflow()
    with errors_in_one_line():
        sys.exit(main(sys.argv[1:]))
