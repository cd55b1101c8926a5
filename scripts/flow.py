"""A grid of runs as a workflow of snakemake: many processes, GPUs or machines; nothing finished is repeated.

    python scripts/flow.py configs/tables/base2new.yaml --dry-run      how much is finished, to do, waiting; how long
    python scripts/flow.py configs/tables/base2new.yaml --workers 2    the built-in benchmark
    python scripts/flow.py configs/tables/cross.yaml --data DIR --gpus 4
    python scripts/flow.py configs/tables/dg.yaml --data DIR --slurm --partition gpu --gpus 1 --workers 50
    python scripts/flow.py --trainer MMA --protocol fewshot toy_shapes 1     words of train.sh in the table's place

Needs snakemake 9 and Python 3.11 (pip install snakemake; for --slurm snakemake-executor-plugin-slurm too). A job that
fails stops no other; run the same line again and it continues. What stands behind `--` goes to snakemake. Logs, flags
and lock: $OUTPUT/flow.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from scripts.check_job import check_job, kind_of  # noqa: E402
from scripts.commands import COMMANDS  # noqa: E402
from scripts.main_job import build_parser, check_keys, has_workflow, report, report_if_any  # noqa: E402
from scripts.plans import plan  # noqa: E402
from scripts.steps import Step, settle  # noqa: E402
from scripts.stopping import PATIENCE, WORKFLOW, end_with_parent, end_with_workflow, stoppable  # noqa: E402
from scripts.workers import run_cell  # noqa: E402
from scripts.workflow.grid import UNITS, Grid, home, unit_of  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The main job's words, and where and how the jobs run."""
    found = build_parser(__doc__)
    add = found.add_argument
    add("--gpus", type=int, default=0, help="local: GPUs, one a job; with --slurm: GPUs of each job")
    add("--by", choices=UNITS, default="", help="what one job is; default: cell on the built-in benchmark, else run")
    add("--retries", type=int, default=1, help="of a job that fails; default 1")
    add("--dry-run", action="store_true", help="write nothing: print the grid and an estimate; --check: a better one")
    add("--slurm", action="store_true", help="submit the jobs to Slurm; --workers: at most so many at once")
    add("--threads", type=int, default=0, help="cores of a job; default: local, an equal share; with --slurm 4")
    for name, kind in (("partition", str), ("account", str), ("runtime", int), ("mem_mb", int)):
        minutes = " in minutes" if name == "runtime" else ""
        add(f"--{name.replace('_', '-')}", type=kind, help=f"of a Slurm job{minutes}")
    add("--job", default="", help=argparse.SUPPRESS)  # run this one here: what a job of a whole cell is
    return found


def read(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command line, and the words behind `--`. args.table: a yaml, taken from its words."""
    cut = words.index("--") if "--" in words else len(words)
    args = parser().parse_intermixed_args(words[:cut])
    tables = [word for word in args.words if word.endswith((".yaml", ".yml"))]
    args.words = [word for word in args.words if word not in tables]
    args.table = tables[0] if tables else ""
    if args.data:
        os.environ["DATA"] = os.path.abspath(args.data)
    return args, words[cut + 1 :]


def cells_of(args) -> list[list[Step]]:
    """The cells. UserError for what a table decides itself, and for numbers out of range."""
    from dassl.utils import UserError

    for name in ("workers", "gpus", "retries", "threads"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}, expected 0 or more")
    if args.table and (args.trainer or args.protocol or args.all):
        raise UserError(f"{args.table} says which methods and protocol: leave out --trainer, --protocol and --all")
    return plan(args)


def workers_of(args) -> int:
    """Jobs at once."""
    return args.workers or (100 if args.slurm else args.gpus or (1 if args.data else 2))


def grid_of(args, words: list[str]) -> Grid:
    """The grid of a command line."""
    cells, share = cells_of(args), max(1, (os.cpu_count() or 1) // workers_of(args))
    return Grid(
        cells,
        args.by or unit_of(cells),
        words,
        threads=args.threads or (4 if args.slurm else share),
        gpus=args.gpus if args.slurm else min(1, args.gpus),
        slots=0 if args.slurm else args.gpus,
        retries=args.retries,
    )


def read_grid(words: list[str]) -> Grid:
    """The grid that a command line stands for; the Snakefile and its jobs, each in its own folder, ask for it."""
    return grid_of(read(words)[0], words)


def from_anywhere(words: list[str], args) -> list[str]:
    """A command line with whole paths in the place of those relative to this folder."""
    data = {f"--data={args.data}": f"--data={os.environ.get('DATA')}", args.data: os.environ.get("DATA")}
    return [data.get(word) or (os.path.abspath(word) if word == args.table else word) for word in words]


def snakemake_argv(args, grid: Grid, more: list[str]) -> list[str]:
    """The words of snakemake's command line."""
    workers = workers_of(args)
    argv = ["--snakefile", str(ROOT / "scripts" / "Snakefile"), "--directory", str(home()), "--nolock"]  # RunLock does
    argv += ["--config", f"words=x{json.dumps(grid.words).encode().hex()}", "--rerun-incomplete"]
    argv += ["--rerun-triggers", "mtime", "--keep-going", "--scheduler", "greedy"]
    if not args.slurm:
        argv += ["--cores", str(workers * grid.threads), "--quiet", "rules", "host"]
        return argv + (["--resources", f"gpu={args.gpus}"] if args.gpus else []) + more
    argv += ["--executor", "slurm", "--jobs", str(workers), "--latency-wait", "60"]
    argv += ["--slurm-logdir", str(home() / "slurm")]
    own = {"slurm_partition": args.partition, "slurm_account": args.account}
    own |= {"runtime": args.runtime, "mem_mb": args.mem_mb}
    given = [f"{key}={value}" for key, value in own.items() if value]
    argv += ["--default-resources", *given] if given else []
    return argv + ([] if args.account else ["--slurm-no-account"]) + more


def run(args, grid: Grid, more: list[str]) -> int:
    """The workflow, then the tables; the exit status."""
    from dassl.utils import RunLock, UserError

    if not has_workflow():
        raise UserError("the workflow needs snakemake 9 or later: pip install snakemake; bash train.sh runs without it")
    env = dict(os.environ) if args.slurm else os.environ | {WORKFLOW: str(os.getpid())}
    if sys.prefix != sys.base_prefix:
        env["VIRTUAL_ENV"] = sys.prefix  # the bash scripts use this Python too
    started = time.time()
    with RunLock(home()), stoppable():
        unmade = settle([step for job in grid.jobs.values() for step in job.steps], args.overwrite)
        words = [sys.executable, "-m", "snakemake", *snakemake_argv(args, grid, more)]
        # a session of its own: signals come through this process, which says so
        options = {"start_new_session": True, "preexec_fn": lambda: end_with_parent(signal.SIGKILL)}
        snakemake = subprocess.Popen(words, cwd=home(), env=env, **options)
        try:
            failed = snakemake.wait()
        except SystemExit:
            end(snakemake)
            raise
        left = [*unfinished(grid)]
        for line in left:
            print(line, file=sys.stderr, flush=True)
        settle(unmade)
        failed = report_if_any([job.steps for job in grid.jobs.values()], report) or failed
    print(f"{time.time() - started:.0f} s for {len(grid.jobs)} jobs")
    return 1 if left or failed else 0


def end(snakemake: subprocess.Popen) -> None:
    """It starts no more jobs, and those that run here end their step."""
    import psutil  # snakemake brings it

    try:
        jobs = psutil.Process(snakemake.pid).children(recursive=True)
        for job in (job for job in jobs if job.name() not in ("sh", "bash")):
            with contextlib.suppress(psutil.NoSuchProcess):
                job.terminate()
        snakemake.send_signal(signal.SIGINT)  # takes jobs of Slurm back, too
        snakemake.wait(PATIENCE)
    finally:
        snakemake.kill()


def status(steps: list[Step], jobs: int, workers: int) -> Iterator[str]:
    """The lines of `--dry-run`: finished runs of all by data set (order, source) and seed, and an estimate by what
    finished runs of a script and CFG took."""
    from dassl.engine.dry_run import clock
    from dassl.report.table import Table

    runs = Grid([steps], "run").jobs
    done = {name: run.finished for name, run in runs.items()}
    waiting = sum(not done[name] and not all(done[other] for other in run.needs) for name, run in runs.items())
    board, seconds, left = defaultdict(lambda: [0, 0]), defaultdict(list), Counter()
    for name, step in ((name, run.steps[0]) for name, run in runs.items()):
        cell = board[step.arguments.get("SOURCE") or step.subject, step.arguments["SEED"]]
        cell[0] += done[name]
        cell[1] += 1
        left[kind_of(step)] += not done[name]
        if done[name] and (wall := wall_s(step)) is not None:
            seconds[kind_of(step)].append(wall)
    seeds, subjects = (dict.fromkeys(key[place] for key in board) for place in (1, 0))
    shown = [(name, *("/".join(map(str, board.get((name, seed), ()))) for seed in seeds)) for name in subjects]
    yield Table("Finished runs of all", ("", *(f"seed {seed}" for seed in seeds)), shown).text()
    yield ""
    yield (
        f"{len(runs)} runs in {jobs} jobs: {sum(done.values())} finished, {left.total() - waiting} to do, "
        f"{waiting} waiting"
    )
    known = sum(count * sum(seconds[kind]) / len(seconds[kind]) for kind, count in left.items() if kind in seconds)
    if known:
        yield f"estimate: {clock(known)}; about {clock(known / workers)} in {workers} at once"
    if unknown := sum(count for kind, count in left.items() if kind not in seconds):
        yield f"{unknown} runs are of kinds of which none is finished: --check tries one of each"


def wall_s(step: Step) -> float | None:
    """What a finished run took, as its results say. A stream: all sessions; one pass evaluates all of them."""
    from dassl.utils import read_json

    command = COMMANDS[step.command]
    walls = [read_json(mark).get("wall_s") for mark in command.marks(dict(step.arguments))]
    return None if None in walls else (max if command.follows else sum)(walls)


def unfinished(grid: Grid) -> Iterator[str]:
    """A line for each job that has run and is not finished: the last of its log; one more for those that wait."""
    left = [job for job in grid.jobs.values() if not job.finished]
    ran = [job for job in left if job.log.is_file()]
    for job in ran:
        lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        yield f"{job.rule} {job.name}: {(lines or ['ended without a word'])[-1]} ({job.log})"
    if waiting := len(left) - len(ran):
        yield f"{waiting} jobs did not start"


def run_here(steps: Iterable[Step]) -> int:
    """One job in this process: Python, PyTorch and CLIP are paid for once. Exit status 1 if a step failed; its error
    is the last line."""
    end_with_workflow()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))

    def tell(what: str, text: str) -> None:
        if what == "start":
            print(time.strftime("%H:%M:%S"), text, flush=True)

    if failure := run_cell([step for step in steps if not step.finished], tell):
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


def main(words: list[str]) -> int:
    """Exit status: 1 if a job is not finished. UserError for a wrong command line, before anything runs."""
    args, more = read(words)
    if args.job:
        return run_here(grid_of(args, words).jobs[args.job].steps)
    own = words[: words.index("--")] if "--" in words else words
    grid = grid_of(args, from_anywhere(own, args))
    os.chdir(ROOT)
    steps = [step for job in grid.jobs.values() for step in job.steps]
    check_keys(steps, args.set)
    if args.dry_run or args.check or os.environ.get("DRY_RUN") == "1":
        print(*status(steps, len(grid.jobs), workers_of(args)), sep="\n", flush=True)
        if not (args.check or args.overwrite):
            settle(steps)
        return check_job(plan, args, workers_of(args)) if args.check else 0
    return run(args, grid, more)


if __name__ == "__main__":
    from dassl.utils import errors_in_one_line

    with errors_in_one_line():
        sys.exit(main(sys.argv[1:]))
