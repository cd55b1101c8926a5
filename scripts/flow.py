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
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import RunLock, UserError, errors_in_one_line, read_json, write_json  # noqa: E402
from scripts.check_job import estimate  # noqa: E402
from scripts.commands import folder  # noqa: E402
from scripts.commands.registered import know  # noqa: E402
from scripts.jobs import Job  # noqa: E402
from scripts.main_job import build_parser, complete, has_workflow, run_job  # noqa: E402
from scripts.stopping import PATIENCE, WORKFLOW, end_with_parent, end_with_workflow  # noqa: E402
from scripts.workers import attempt  # noqa: E402

UNITS = ("run", "cell")
PLAN = "plan.json"  # of the workflow's folder: what the Snakefile and its jobs read


def parser() -> argparse.ArgumentParser:
    """The main job's words, and where and how the jobs run."""
    parser = build_parser(__doc__)
    add = parser.add_argument
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
    return parser


def read(words: list[str]) -> argparse.Namespace:
    """A command line. table: a yaml, taken from its words; more: those behind `--`. UserError for what a table decides
    itself."""
    cut = words.index("--") if "--" in words else len(words)
    args = parser().parse_intermixed_args(words[:cut])
    tables = [word for word in args.words if word.endswith((".yaml", ".yml"))]
    args.words = [word for word in args.words if word not in tables]
    args.table, args.more = os.path.abspath(tables[0]) if tables else "", words[cut + 1 :]
    if args.table and (args.trainer or args.protocol or args.all):
        raise UserError(f"{tables[0]} says which methods and protocol: leave out --trainer, --protocol and --all")
    complete(args, 100 if args.slurm else args.gpus)
    args.threads = args.threads or (4 if args.slurm else max(1, (os.cpu_count() or 1) // args.workers))
    return args


# The grid as the workflow's jobs. A unit is one run, or all runs of a data set and seed in one process (`--by cell`).
# Its flag is empty and mirrors whether its results are there: the engine, which removes the output of a job that
# failed, never touches a result.


def home() -> Path:
    """The workflow's folder: its flags, logs and lock."""
    return Path(folder("OUTPUT", "output"), "flow")


def units_of(groups: list[list[Job]], by: str = "") -> dict[str, list[Job]]:
    """The jobs of each unit by its name, which is its flag's below done/ and its log's below logs/.

    by: run or cell; "": a toy run takes about as long as starting Python and PyTorch (6 s), so the cells of the
    built-in benchmark; a public one takes minutes to hours, so runs, that many machines may share a cell.
    """
    toy = all(job.subject.startswith("toy") for group in groups for job in group)
    units = {}
    for jobs in groups if by == "cell" or not by and toy else [[job] for group in groups for job in group]:
        if jobs:
            tag = hashlib.sha256("\n".join(str(job.folder) for job in jobs).encode()).hexdigest()[:8]
            kind = jobs[0].command.replace("/", "_") if len(jobs) == 1 else "cell"
            units[f"{kind}/{jobs[0].subject}-seed{jobs[0].arguments['SEED']}-{tag}"] = jobs
    return units


def needs_of(units: dict[str, list[Job]]) -> dict[str, list[str]]:
    """The units that each of them waits for, which come before it."""
    needs, makers = {}, {}  # makers: folder -> the unit that makes it
    for name, jobs in units.items():
        runs = [run for job in jobs for run, _ in job.needs.values()]
        needs[name] = [*dict.fromkeys(makers[run] for run in runs if run in makers)]
        makers = {str(job.folder): name for job in jobs} | makers
    return needs


def unit_line(name: str, jobs: list[Job], gpus: int = 0) -> str:
    """The shell line of a unit, from the clone: the bash script's, or a whole cell in one process. gpus: that units
    of this machine share."""
    python, log = shlex.quote(sys.executable), shlex.quote(str(home() / "logs" / f"{name}.log"))
    slot = f"{python} scripts/gpu.py {gpus} {shlex.quote(str(home()))} " if gpus else ""
    cell = [f"{python} scripts/flow.py --job {shlex.quote(name)}"]
    lines = [slot + line for line in (cell if len(jobs) > 1 else jobs[0].lines(python))]
    return f"cd {shlex.quote(str(ROOT))} && ({' && '.join(lines)}) >> {log} 2>&1"


def write_plan(units: dict[str, list[Job]], args) -> None:
    """What the Snakefile and its jobs read; and flags that say what is finished: a result that was removed is made
    again."""
    rows, needs = {}, needs_of(units)
    for name, jobs in units.items():
        flag = home() / "done" / name
        flag.parent.mkdir(parents=True, exist_ok=True)
        flag.touch() if all(job.finished for job in jobs) else flag.unlink(missing_ok=True)
        line = unit_line(name, jobs, 0 if args.slurm else args.gpus)
        rows[name] = {"needs": needs[name], "line": line, "jobs": [asdict(job) for job in jobs]}
    gpus = args.gpus if args.slurm else min(1, args.gpus)
    write_json({"threads": args.threads, "gpus": gpus, "retries": args.retries, "units": rows}, str(home() / PLAN))


def snakemake_argv(args) -> list[str]:
    """The words of snakemake's command line."""
    argv = ["--snakefile", str(ROOT / "scripts" / "Snakefile"), "--directory", str(home()), "--nolock"]  # RunLock does
    argv += ["--rerun-incomplete", "--rerun-triggers", "mtime", "--keep-going", "--scheduler", "greedy"]
    if not args.slurm:
        argv += ["--cores", str(args.workers * args.threads), "--quiet", "rules", "host"]
        return argv + (["--resources", f"gpu={args.gpus}"] if args.gpus else []) + args.more
    argv += ["--executor", "slurm", "--jobs", str(args.workers), "--latency-wait", "60"]
    argv += ["--slurm-logdir", str(home() / "slurm")]
    asked = {"slurm_partition": args.partition, "slurm_account": args.account}
    asked |= {"runtime": args.runtime, "mem_mb": args.mem_mb}
    words = [f"{key}={value}" for key, value in asked.items() if value]
    argv += ["--default-resources", *words] if words else []
    return argv + ([] if args.account else ["--slurm-no-account"]) + args.more


def run_workflow(groups: list[list[Job]], args) -> tuple[str, bool]:
    """The workflow -> (what was run, whether something is left of it)."""
    units = units_of(groups, args.by)
    env = dict(os.environ) if args.slurm else os.environ | {WORKFLOW: str(os.getpid())}
    if sys.prefix != sys.base_prefix:
        env["VIRTUAL_ENV"] = sys.prefix  # the bash scripts use this Python too
    write_plan(units, args)
    # a session of its own: signals come through this process, which says so
    options = {"start_new_session": True, "preexec_fn": lambda: end_with_parent(signal.SIGKILL)}
    words = [sys.executable, "-m", "snakemake", *snakemake_argv(args)]
    snakemake = subprocess.Popen(words, cwd=home(), env=env, **options)
    try:
        failed = snakemake.wait()
    except SystemExit:
        end(snakemake)
        raise
    left = [*unfinished(units)]
    for line in left:
        print(line, file=sys.stderr, flush=True)
    return f"{len(units)} jobs", bool(left or failed)


def end(snakemake: subprocess.Popen) -> None:
    """It starts no more jobs, and those that run here end the run under way."""
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


def unfinished(units: dict[str, list[Job]]) -> Iterator[str]:
    """A line for each unit that has run and is not finished: the last of its log; one more for those that wait."""
    left = {name: home() / "logs" / f"{name}.log" for name, jobs in units.items() if not all(j.finished for j in jobs)}
    ran = {name: log for name, log in left.items() if log.is_file()}
    for name, log in ran.items():
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        yield f"{name}: {last or 'ended without a word'} ({log})"
    if waiting := len(left) - len(ran):
        yield f"{waiting} jobs did not start"


def status(groups: list[list[Job]], args) -> Iterator[str]:
    """The lines of `--dry-run`: finished runs of all by data set (order, source) and seed, and an estimate by what
    finished runs of a script and CFG took."""
    units, cells = units_of(groups, "run"), defaultdict(list)
    needs, jobs = needs_of(units), {name: job for name, (job,) in units.items()}
    done = {name: job for name, job in jobs.items() if job.finished}
    for name, job in jobs.items():
        cells[f"{job.arguments.get('SOURCE') or job.subject} seed {job.arguments['SEED']}"].append(name in done)
    yield from (f"{cell}: {sum(finished)}/{len(finished)}" for cell, finished in cells.items())
    ready = sum(name not in done and done.keys() >= {*needs[name]} for name in jobs)
    waiting = len(jobs) - len(done) - ready
    count = f"{len(jobs)} runs in {len(units_of(groups, args.by))} jobs"
    yield f"{count}: {len(done)} finished, {ready} to do, {waiting} waiting"
    if not args.check:  # which does so too
        yield from estimate([*jobs.values()], [*done.values()], args.workers)


def run_unit(name: str) -> int:
    """One unit in this process: Python, PyTorch and CLIP are paid for once. Exit status 1 if a run failed; its error is
    the last line."""
    end_with_workflow()
    import torch

    row = read_json(home() / PLAN)["units"][name]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    jobs = [Job(**fields | {"pairs": tuple(fields["pairs"])}) for fields in row["jobs"]]
    know(job.command for job in jobs)
    for job in (job for job in jobs if not job.finished):
        print(time.strftime("%H:%M:%S"), job, flush=True)
        if failure := attempt(job):
            print(f"error: {failure}", file=sys.stderr)
            return 1
    return 0


def main(words: list[str]) -> int:
    """Exit status: 1 if a job is not finished. UserError for a wrong command line, before anything runs."""
    args = read(words)
    if args.job:
        return run_unit(args.job)
    args.dry_run = args.dry_run or args.check
    if not (args.dry_run or has_workflow()):
        raise UserError("the workflow needs snakemake 9 or later: pip install snakemake; bash train.sh runs without it")
    return run_job(args, run_workflow, status, lock=RunLock(home()))


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(sys.argv[1:]))
