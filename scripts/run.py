"""Run one command of `commands.py`:  python scripts/run.py NAME ARGUMENT... [-- KEY VALUE ...]

From the environment: DATA (default data/ in the clone), OUTPUT (default output/), DRY_RUN=1 to print only.
A finished run is skipped; a killed one continues.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.commands import COMMANDS, Command  # noqa: E402


class Usage(Exception):
    """A wrong command line; the message is its one line."""


def folder(variable: str, default: str) -> str:
    """DATA or OUTPUT: as the environment gives it, else in the clone."""
    return os.path.abspath(os.environ[variable]) if os.environ.get(variable) else str(ROOT / default)


def parse(name: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The arguments by name, and the KEY VALUE pairs behind `--`."""
    command = COMMANDS[name]
    cut = words.index("--") if "--" in words else len(words)
    given, pairs = words[:cut], words[cut + 1 :]
    if len(given) != len(command.arguments):
        raise Usage(f"usage: scripts/{name}.sh {' '.join(command.arguments)} [-- KEY VALUE ...]")
    if len(pairs) % 2:
        raise Usage(f"usage: scripts/{name}.sh ... [-- KEY VALUE ...], but {pairs[-1]} has no value")
    arguments = command.defaults | dict(zip(command.arguments, given, strict=True))
    if not (ROOT / "configs" / "datasets" / f"{arguments['DATASET']}.yaml").is_file():
        known = ", ".join(sorted(p.stem for p in (ROOT / "configs" / "datasets").glob("*.yaml")))
        raise Usage(f"usage: scripts/{name}.sh: unknown data set {arguments['DATASET']}; known: {known}")
    return arguments, pairs


def run_folder(command: Command, arguments: dict[str, str]) -> Path:
    """Where a command writes."""
    return Path(folder("OUTPUT", "output")) / command.output.format(**arguments)


def script_line(name: str, arguments: dict[str, str]) -> str:
    """The shell line of a command with these arguments."""
    return f"bash scripts/{name}.sh {' '.join(arguments[key] for key in COMMANDS[name].arguments)}"


def stage1_folder(command: Command, arguments: dict[str, str]) -> Path:
    """The run folder that a stage-2 command continues from."""
    first = COMMANDS[command.stage1]
    return run_folder(first, arguments | first.defaults)


def train_argv(name: str, arguments: dict[str, str], pairs: list[str]) -> list[str]:
    """Arguments of train.py."""
    command = COMMANDS[name]
    argv = ["--root", folder("DATA", "data"), "--seed", arguments["SEED"], "--trainer", command.trainer]
    argv += ["--dataset-config-file", f"configs/datasets/{arguments['DATASET']}.yaml"]
    argv += ["--config-file", f"configs/trainers/{command.config.format(**arguments)}.yaml"]
    argv += ["--output-dir", str(run_folder(command, arguments))]
    if command.evaluates:
        argv += ["--model-dir", str(run_folder(COMMANDS[command.evaluates], arguments)), "--eval-only"]
    if command.eval_only:
        argv += ["--eval-only"]
    if command.stage1:
        argv += ["--resume-coop", str(stage1_folder(command, arguments))]
    argv += ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", command.subset]
    return argv + [word.format(**arguments) for word in command.pairs] + pairs


def ready(run: Path) -> bool:
    """Is there a trained model: a finished run of ours, or other people's checkpoint files?"""
    foreign = any(run.glob("*/model*.pth.tar*")) and not (run / "resume.pt").exists()
    return (run / "results.json").is_file() or foreign


def missing(name: str, arguments: dict[str, str]) -> str:
    """What has to run first, if it has not: the line that says so."""
    command = COMMANDS[name]
    for other, what in ((command.stage1, "stage-1 checkpoint"), (command.evaluates, "trained model")):
        if not other:
            continue
        needed = arguments | COMMANDS[other].defaults
        run = run_folder(COMMANDS[other], needed)
        if not ready(run):
            return f"no {what} in {run}; make it with:  {script_line(other, needed)}"
    return ""


def main(words: list[str]) -> int:
    """Exit status of one script."""
    try:
        name, rest = words[0], words[1:]
        arguments, pairs = parse(name, rest)
    except Usage as usage:
        print(usage, file=sys.stderr)
        return 2
    argv = ["python", "train.py", *train_argv(name, arguments, pairs)]
    if os.environ.get("DRY_RUN") == "1":
        print(shlex.join(argv))
        return 0
    out = run_folder(COMMANDS[name], arguments)
    if (out / "results.json").is_file():
        print(f"{out} is finished: skipped (remove it to run again)")
        return 0
    if need := missing(name, arguments):
        print(f"error: {need}", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, *argv[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
