"""What a grid has and lacks: the table of `--dry-run`, its estimate, and what a workflow has left unfinished."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from scripts.check_job import kind_of
from scripts.commands import COMMANDS
from scripts.jobs import Step
from scripts.workflow.grid import Grid

STATES = ("finished", "to do", "waiting")


@dataclass
class Kind:
    """Runs of one script and CFG: how many are in each state, and the seconds that finished ones took."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    seconds: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.counts["to do"] + self.counts["waiting"]

    @property
    def mean(self) -> float | None:
        return sum(self.seconds) / len(self.seconds) if self.seconds else None


def states(grid: Grid, cells: list[list[Step]]) -> list[tuple[Step, str]]:
    """Each run with its state: waiting, if one that it needs is not finished."""
    by_run = grid if grid.unit == "run" else Grid(cells, "run", [])
    done = {name: job.finished for name, job in by_run.jobs.items()}
    found = []
    for name, job in by_run.jobs.items():
        waits = not all(done[other] for other in job.needs)
        found.append((job.steps[0], "finished" if done[name] else STATES[1 + waits]))
    return found


def seconds_of(step: Step) -> float | None:
    """What a finished run took, as its results say."""
    from dassl.utils import read_json

    command = COMMANDS[step.command]
    walls = [read_json(mark).get("wall_s") for mark in command.marks(dict(step.arguments))]
    if None in walls:
        return None
    return max(walls) if command.follows else sum(walls)  # a stream: all sessions; one pass evaluates all of them


def kinds_of(found: list[tuple[Step, str]]) -> dict[str, Kind]:
    """The runs by script and CFG."""
    kinds: dict[str, Kind] = defaultdict(Kind)
    for step, state in found:
        kind = kinds[kind_of(step)]
        kind.counts[state] += 1
        if state == "finished" and (seconds := seconds_of(step)) is not None:
            kind.seconds.append(seconds)
    return kinds


def lines_of(grid: Grid, cells: list[list[Step]], workers: int) -> Iterator[str]:
    """The lines of `--dry-run`."""
    from dassl.engine.preflight import clock
    from dassl.report.tables import Table

    found = states(grid, cells)
    yield board(found).text()
    yield ""
    kinds, rows = kinds_of(found), []
    for name, kind in kinds.items():
        times = ("-", "-") if kind.mean is None else (clock(kind.mean), clock(kind.mean * kind.left))
        rows.append((name, *map(str, kind.counts.values()), *times))
    yield Table("Runs by script and CFG", ("", *STATES, "a run", "left"), rows).text()
    yield ""
    total = {state: sum(kind.counts[state] for kind in kinds.values()) for state in STATES}
    counts = ", ".join(f"{count} {state}" for state, count in total.items())
    yield f"{len(found)} runs in {len(grid.jobs)} jobs: {counts}"
    known = sum(kind.mean * kind.left for kind in kinds.values() if kind.mean is not None)
    unknown = sum(kind.left for kind in kinds.values() if kind.mean is None)
    hint = f"{unknown} runs are of kinds of which none is finished: --check tries one of each" if unknown else ""
    told = f"estimate: {clock(known)}; about {clock(known / workers)} in {workers} at once" if known else ""
    yield from filter(None, (told, hint))


def board(found: list[tuple[Step, str]]):
    """Finished runs of all, by data set (order, source) and seed -> Table."""
    from dassl.report.tables import Table

    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for step, state in found:
        cell = cells[step.arguments.get("SOURCE") or step.subject, step.arguments["SEED"]]
        cell[0] += state == "finished"
        cell[1] += 1
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    rows = []
    for name in dict.fromkeys(name for name, _ in cells):
        shown = [cells.get((name, seed)) for seed in seeds]
        rows.append((name, *(f"{cell[0]}/{cell[1]}" if cell else "" for cell in shown)))
    return Table("Finished runs of all", ("", *(f"seed {seed}" for seed in seeds)), rows)


def status(grid: Grid, cells: list[list[Step]], workers: int) -> None:
    """Print it; writes nothing."""
    print(*lines_of(grid, cells, workers), sep="\n")


def unfinished(grid: Grid) -> Iterator[str]:
    """A line for each job that has run and is not finished: the last of its log; one more for those that wait."""
    left = [job for job in grid.jobs.values() if not job.finished]
    ran = [job for job in left if job.log.is_file()]
    for job in ran:
        said = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        yield f"{job.rule} {job.name}: {(said or ['ended without a word'])[-1]} ({job.log})"
    if waiting := len(left) - len(ran):
        yield f"{waiting} jobs did not start"
