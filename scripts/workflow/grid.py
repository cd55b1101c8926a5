"""The grid as jobs of a workflow: what each runs, what it waits for, and whether it is finished.

A job is one command (`--by run`), or all commands of a data set and seed in one process (`--by cell`). A job is
finished when its commands have left their results; the workflow's own files are empty flags that mirror this, so that
the engine, which removes the output of a job that failed, never touches a result.
"""

import hashlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.commands import folder
from scripts.commands.command import ROOT
from scripts.jobs import is_toy
from scripts.run import script_line
from scripts.steps import Step, needs

UNITS = ("run", "cell")


@dataclass(frozen=True)
class Job:
    """rule: of the workflow; name: unique in the grid; needs: names of jobs."""

    rule: str
    name: str
    steps: tuple[Step, ...]
    needs: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return all(step.finished for step in self.steps)

    @property
    def flag(self) -> Path:
        return home() / "done" / self.rule / self.name

    @property
    def log(self) -> Path:
        return home() / "logs" / self.rule / f"{self.name}.log"


def home() -> Path:
    """The workflow's folder: its flags, logs and lock."""
    return Path(folder("OUTPUT", "output"), "flow")


class Grid:
    """Jobs by name, in an order in which each comes after those it needs.

    words: the command line that plans the same grid again, in a job's own process; threads, gpus, attempts: of a job;
    slots: GPUs that jobs of this machine share.
    """

    def __init__(
        self, cells: list[list[Step]], unit: str, words: Sequence[str] = (), threads=1, gpus=0, slots=0, retries=0
    ):
        self.words, self.unit, self.threads = words, unit, threads
        self.gpus, self.slots, self.retries = gpus, slots, retries
        self.jobs: dict[str, Job] = {}
        makers: dict[str, str] = {}  # folder -> the job that makes it
        for steps in filter(None, cells if unit == "cell" else [[step] for cell in cells for step in cell]):
            folders = [str(step.folder) for step in steps]
            tag = hashlib.sha256("\n".join(folders).encode()).hexdigest()[:8]
            name = f"{steps[0].subject}-seed{steps[0].arguments['SEED']}-{tag}"
            before = [run for step in steps for _, run, _, _ in needs(step.command, dict(step.arguments))]
            needed = dict.fromkeys(makers[run] for run in before if run in makers)
            makers = dict.fromkeys(folders, name) | makers
            rule = "cell" if unit == "cell" else steps[0].command.replace("/", "_")
            self.jobs[name] = Job(rule, name, tuple(steps), tuple(needed))

    def needed(self, name: str) -> list[str]:
        """The flags that a job waits for."""
        return [str(self.jobs[other].flag) for other in self.jobs[name].needs]

    def mirror(self) -> None:
        """Make the flags say what is finished: a result that was removed is to be made again."""
        for job in self.jobs.values():
            if not job.finished:
                job.flag.unlink(missing_ok=True)
            elif not job.flag.exists():
                job.flag.parent.mkdir(parents=True, exist_ok=True)
                job.flag.touch()

    def line(self, name: str) -> str:
        """The shell line of a job, from the clone: the bash script's, or a whole cell in one process."""
        job = self.jobs[name]
        python = shlex.quote(sys.executable)
        slot = f"{python} scripts/workflow/gpu.py {self.slots} {shlex.quote(str(home()))} " if self.slots else ""
        if self.unit == "cell":
            lines = [f"{slot}{python} scripts/flow.py --job {shlex.join([name, *self.words])}"]
        else:
            lines = list(step_lines(job.steps[0], python, slot))
        return f"cd {shlex.quote(str(ROOT))} && ({' && '.join(lines)}) >> {shlex.quote(str(job.log))} 2>&1"


def step_lines(step: Step, python: str, slot: str = "") -> Iterator[str]:
    """A step's bash script, and its path card where one belongs to it."""
    yield slot + script_line(step.command, dict(step.arguments), step.pairs, python)
    if step.card:
        others = ["--others", *step.others] if step.others else []
        yield f"{slot}{python} -m mergetune.path_card {shlex.join([str(step.folder), *others])}"


def unit_of(cells: list[list[Step]]) -> str:
    """What is one job, if the command line does not say. A toy run takes about as long as starting Python and PyTorch
    (6 s): its cells are jobs. A public one takes minutes to hours: its runs are, so that many machines share a cell."""
    toy = all(is_toy({"DATASET": step.subject}) or step.subject == "toy" for cell in cells for step in cell)
    return "cell" if toy else "run"
