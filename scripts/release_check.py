"""The engine under every supported Python, each in an empty environment of its own that is removed afterwards.

    bash scripts/release_check.sh

`installed`: pip install ./Dassl.ProGrad.pytorch, then release_smoke.py from an empty folder. `on the path`: the same
with the engine on PYTHONPATH instead. `project`: pip install -r requirements.txt in a copy of this repository, every
module of its packages imported, and CoOp on the built-in benchmark from training to the table. Needs no package itself.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "Dassl.ProGrad.pytorch"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
PACKAGES = ("dassl", "mergetune", "condu", "datasets")
STEPS = ("installed", "on the path", "project")
COLUMNS = "{:8}{:16}{:>24}{:>24}{:>24}{:>10}"
LEFT_OUT = {"__pycache__", "build", ".git", ".venv"}
LIMIT = 1800  # seconds of one command


class Fault(Exception):
    """A step failed: a few words for the table, and what the command said."""

    def __init__(self, words: str, said: str = ""):
        super().__init__(words)
        self.said = said


def main(argv: list[str] | None = None) -> int:
    """Run, print the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=list(VERSIONS), metavar="VERSION", help=" ".join(VERSIONS))
    parser.add_argument("--no-project", action="store_true", help="the engine alone")
    args = parser.parse_args(argv)
    if unknown := set(args.versions) - set(VERSIONS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(VERSIONS)}")
    steps = STEPS[:-1] if args.no_project else STEPS
    found = interpreters(args.versions, "import ensurepip, venv")
    print(COLUMNS.format("python", "torch", *STEPS, "minutes"), flush=True)
    rows = [row_of(version, found.get(version), steps) for version in args.versions]
    faults = [(version, fault) for version, row in zip(args.versions, rows, strict=True) for fault in row]
    for version, fault in faults:
        print(f"\npython{version}: {fault}\n{fault.said}".rstrip())
    return 1 if faults else 0


def row_of(version: str, python: str | None, steps: Iterable[str]) -> list[Fault]:
    """Print a line of the table; what went wrong."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), python)
        cells, faults = {}, []
        for name, step in zip(STEPS, (check.installed, check.on_the_path, check.project), strict=True):
            if name in steps and not (faults and not check.usable):
                fault = outcome(step)
                cells[name] = str(fault or "ok")
                faults += [fault] if fault else []
        torch = check.torch
    minutes = f"{(time.monotonic() - started) / 60:.1f}"
    print(COLUMNS.format(version, torch, *(cells.get(name, "-") for name in STEPS), minutes), flush=True)
    return faults


def outcome(step: Callable[[], None]) -> Fault | None:
    try:
        step()
    except Fault as fault:
        return fault
    return None


class Check:
    """One interpreter's environment below `folder`."""

    def __init__(self, folder: Path, python: str | None):
        self.folder, self.base = folder, python
        self.python = folder / "venv" / "bin" / "python"
        self.torch = "-"
        self.usable = False  # holds what the engine needs

    def installed(self) -> None:
        """The engine from its folder into an empty environment."""
        if not self.base:
            raise Fault("no interpreter")
        self.run("venv", self.base, "-m", "venv", self.folder / "venv")
        self.pip("install", copied(ENGINE, self.folder / "source"))
        self.usable = True
        self.smoke("installed", self.folder / "venv")

    def on_the_path(self) -> None:
        """The engine from its folder, not installed."""
        self.pip("uninstall", "--yes", "dassl")
        self.smoke("on_the_path", ENGINE, PYTHONPATH=str(ENGINE))

    def project(self) -> None:
        """Everything, as train.sh sets it up."""
        root = copied(ROOT, self.folder / "project")
        self.pip("install", "-r", "requirements.txt", cwd=root)
        self.smoke("everything", root, *PACKAGES, PYTHONPATH=str(root))
        words = [
            *("train.py", "--root", self.folder / "data", "--seed", "1", "--trainer", "CoOp"),
            *("--dataset-config-file", "configs/datasets/toy_shapes.yaml"),
            *("--config-file", "configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml"),
            *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES"),
        ]
        self.run("train.py", self.python, *words, "base", "--output-dir", "out/train", cwd=root)
        for subset in ("base", "new"):
            own = (subset, "--output-dir", f"out/{subset}", "--eval-only", "--model-dir", "out/train")
            self.run("evaluation", self.python, *words, *own, cwd=root)
        self.run("report", self.python, "-m", "mergetune.report", "out", cwd=root)

    def smoke(self, name: str, home: Path, *packages: str, **environment: str) -> None:
        """release_smoke.py from an empty folder; the engine has to be the one below `home`."""
        folder = self.folder / name
        folder.mkdir()
        script = shutil.copy(ROOT / "scripts" / "release_smoke.py", folder)
        said = self.run("smoke", self.python, script, *packages, cwd=folder, **environment)
        facts = json.loads(said.splitlines()[-1])
        if not Path(facts["file"]).is_relative_to(home):
            raise Fault("another dassl", f"{facts['file']}, expected one below {home}")
        self.torch = facts["torch"]

    def pip(self, *words: object, **keys) -> None:
        self.run("pip", self.python, "-m", "pip", "--disable-pip-version-check", *words, **keys)

    def run(self, name: str, *words: object, cwd: Path | None = None, **environment: str) -> str:
        """What a command prints. Fault with the end of what it said if it fails."""
        own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        line = [str(word) for word in words]
        try:
            done = subprocess.run(
                line, cwd=cwd or self.folder, env=own | environment, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired as error:
            raise Fault(f"{name}: over {LIMIT} s") from error
        if done.returncode:
            said = (done.stdout + done.stderr).splitlines()
            lacks = [line.split()[-1] for line in said if "No matching distribution found for" in line]
            raise Fault(f"no wheel of {lacks[0]}" if lacks else f"{name} failed", "\n".join(said[-15:]))
        return done.stdout


def interpreters(versions: Iterable[str], code: str = "pass") -> dict[str, str]:
    """{version: path} of the first python3.X each, on PATH or in pyenv, that starts and runs `code`."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        folders += sorted(Path(root).glob("versions/*/bin"))
    found = {}
    for version in versions:
        for path in (folder / f"python{version}" for folder in folders):
            if path.is_file() and starts(path, version, code):
                found[version] = str(path)
                break
    return found


def starts(path: Path, version: str, code: str) -> bool:
    """Is it a Python of that version, and no launcher to nothing?"""
    check = f"import sys; assert '%d.%d' % sys.version_info[:2] == '{version}'; {code}"
    try:
        return subprocess.run([str(path), "-I", "-c", check], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def copied(source: Path, target: Path) -> Path:
    """A copy without what runs and builds leave, so that a build writes nothing here."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        own = {"data", "output"} if Path(folder) == ROOT else set()
        return {name for name in names if name in LEFT_OUT | own or name.endswith(".egg-info")}

    return Path(shutil.copytree(source, target, ignore=left_out))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the environment is removed even so
    sys.exit(main())
