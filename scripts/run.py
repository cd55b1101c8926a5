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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from condu.orders import tasks_of  # noqa: E402
from dassl.utils import UserError, check_availability, errors_in_one_line, expand_user  # noqa: E402
from scripts.commands import COMMANDS, folder  # noqa: E402
from scripts.commands.command import OVERWRITE, checked_pairs, follow, names_in  # noqa: E402
from scripts.commands.registered import know  # noqa: E402
from scripts.jobs import STREAM, Job, builds_on, known_arguments, settle  # noqa: E402
from scripts.stopping import end_with_workflow  # noqa: E402

NUMBERS = ("SEED", "SHOTS", "LOADEP", "N", "GPUS")
NAMED = re.compile(r"[A-Z][A-Z0-9_]*=")


def help_of(name: str) -> str:
    """The usage line of a script, and what its head says; of no script, what this program says."""
    if name not in COMMANDS:
        return f"{__doc__}\nNAME: {', '.join(COMMANDS)}"
    command, file = COMMANDS[name], ROOT / "scripts" / f"{name}.sh"
    script = f"scripts/{name}.sh" if file.is_file() else f"scripts/run.py {name}"
    forms = ", or ".join(" ".join(form) or "none" for form in (command.arguments, *command.forms))
    flags = "".join(f" [{flag}]" for flag in dict.fromkeys((*command.flags, *(() if command.free else (OVERWRITE,)))))
    usage = f"usage: {script} {forms}{flags} [-- KEY VALUE ...]"
    head = file.read_text(encoding="utf-8").splitlines()[1:] if file.is_file() else []
    return "\n".join([usage, *[""][: len(head)], *(line[2:] for line in head if line.startswith("#"))])


def parse(name: str, words: list[str]) -> list[Job]:
    """The job of a command line, one for each seed that the script runs. UserError for a wrong one."""
    command = COMMANDS[name]
    cut = words.index("--") if "--" in words else len(words)
    words, pairs = words[:cut], words[cut + 1 :]
    if command.free:
        arguments = {"WORDS": shlex.join(words)}
    else:
        arguments = dict(word.split("=", 1) for word in words if NAMED.match(word))
        placed = [word for word in words if word not in (*command.flags, OVERWRITE) and not NAMED.match(word)]
        form = next((form for form in (command.arguments, *command.forms) if len(form) == len(placed)), None)
        if form is None:
            raise UserError(f"{len(placed)} arguments" if placed else "")
        arguments |= dict(zip(form, placed, strict=True))
    known = known_arguments(command, arguments)
    if wrong := arguments.keys() - {*known, "WORDS"}:
        raise UserError(f"no argument {', '.join(sorted(wrong))}; known: {', '.join(known)}")
    in_sweep = "SWEEP" in arguments  # whose folder names its keys
    pairs = checked_pairs(pairs, ("TRAINER.MODAL",) if in_sweep else ())
    if not in_sweep:
        arguments, pairs = follow(command, arguments, pairs, builds_on(command, arguments), typed=True)
    if flags := [word for word in words if word in command.flags]:
        arguments["FLAGS"] = " ".join(flags)
    arguments |= {key: os.path.abspath(expand_user(path)) for key, path in arguments.items() if key.endswith("_DIR")}
    seeds = [arguments["SEED"]] if "SEED" in arguments else command.seeds()
    jobs = [Job(name, command.complete(arguments | {"SEED": seed}), tuple(pairs)) for seed in seeds]
    for job in jobs:
        check(job)
    return jobs


def check(job: Job) -> None:
    """Refuse a number that is none, an unknown data set, order or CFG, and what leads out of OUTPUT."""
    command, arguments = job.declared, job.arguments
    for key in NUMBERS:
        word, last = arguments.get(key, ""), key == "LOADEP"
        if word and not word.isdecimal() and not (last and word == "last"):
            raise UserError(f"{key} is {word!r}, expected a whole number{' or last' * last}")
    if "ORDER" in arguments:
        tasks_of(arguments["ORDER"])
    known = dict.fromkeys(("DATASET", "SOURCE"), names_in("datasets"))
    if command.trainer:
        known["CFG"] = names_in(f"trainers/{command.recipes or command.trainer}")
    for key, names in known.items():
        check_availability(arguments.get(key, names[0]), names, key)
    if "{" in command.evaluates:
        scripts = fnmatch.filter(COMMANDS, re.sub(r"{\w+}", "*", command.evaluates))
        check_availability(command.evaluates.format(**arguments), scripts, "the script of its run")
    root = os.path.abspath(arguments.get("OUTPUT") or folder("OUTPUT", "output"))
    if root != os.path.commonpath([root, os.path.abspath(job.folder)]):
        raise UserError(f"{job.folder} does not lie below OUTPUT, {root}")


def ready(run: str | Path) -> bool:
    """Is there a trained model: a finished run of ours, or other people's checkpoint files?"""
    run = Path(run)
    files = [*run.glob("model*.pth.tar*"), *run.glob("*/model*.pth.tar*")]
    return run.is_file() or (run / "results.json").is_file() or bool(files) and not (run / "resume.pt").exists()


def check_needs(job: Job) -> None:
    """UserError for what has to run first, if it has not: the line that makes it."""
    # a stream's evaluation says itself which sessions it lacks
    keys = {"teacher": "TRAINER.PROMPTKD.TEACHER_DIR", "stage-1 checkpoint": "RESUME_COOP"}
    for what, (run, other) in job.needs.items():
        if what != STREAM and not ready(run) and keys.get(what) not in job.pairs:
            raise UserError(f"no {what} in {run}; make it with:  {other.line()}")


def run_one(job: Job, overwrite: bool = False) -> None:
    """One run of a script. UserError if it fails."""
    command = job.declared
    if os.environ.get("DRY_RUN") == "1":
        lines = command.lines(job.argv) if command.lines else [["python", *job.program]]
        print(*map(shlex.join, lines), sep="\n")
        return
    os.chdir(ROOT)
    if not callable(command.marker):  # else its module compares, and skips, what is there
        settle([job], overwrite)
        if job.done:
            print(f"{job.folder} is finished: skipped (remove it to run again)")
            return
    check_needs(job)
    job.start()


def main(words: list[str]) -> int:
    """Exit status of one script: 2 for a wrong command line, after its usage. UserError: a run fails."""
    name = words[0] if words else ""
    if name and not name.startswith("-"):
        know([name])
    if {"-h", "--help"} & set(words) and not (name in COMMANDS and COMMANDS[name].free):
        print(help_of(name))
        return 0
    if name not in COMMANDS:
        usage = f"usage: scripts/run.py NAME ARGUMENT... [-- KEY VALUE ...]; NAME: {', '.join(COMMANDS)}"
        print(usage, file=sys.stderr)
        return 2
    try:
        jobs = parse(name, words[1:])
    except UserError as error:
        print(": ".join(filter(None, (help_of(name).splitlines()[0], str(error)))), file=sys.stderr)
        return 2
    overwrite = OVERWRITE in words[: words.index("--") if "--" in words else None]
    for job in jobs:
        run_one(job, overwrite)
    return 0


if __name__ == "__main__":
    end_with_workflow()
    with errors_in_one_line():
        sys.exit(main(sys.argv[1:]))
