"""The main job: every data set and seed through a method pair and a protocol, then the tables and the path figures.

    bash train.sh                                   the built-in benchmark
    bash train.sh --trainer MMA --protocol cross    another method pair, another protocol
    bash train.sh --data DIR caltech101 1 2 3       public data and OpenAI weights

Cells (see `workers.py`) are data sets and seeds; in the protocols with a source, sources and seeds. What is finished
is skipped; what was killed continues. DRY_RUN=1 prints the command lines and runs nothing.
"""

import argparse
import contextlib
import importlib.metadata
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

import mergetune  # noqa: E402
from dassl import engine  # noqa: E402
from dassl.config import merge_pairs, read_yaml  # noqa: E402
from dassl.utils import ArgumentParser, UserError, errors_in_one_line, one_line  # noqa: E402
from scripts.check_job import check_job  # noqa: E402
from scripts.commands import folder  # noqa: E402
from scripts.grid import plan  # noqa: E402
from scripts.jobs import Job, settle  # noqa: E402
from scripts.plans import PROTOCOLS  # noqa: E402
from scripts.stopping import stoppable  # noqa: E402
from scripts.workers import run_groups  # noqa: E402


def report(*more: str) -> None:
    """Tables and figures of everything below OUTPUT."""
    output = folder("OUTPUT", "output")
    mergetune.report.main([output, "--out", output, "--figures", *more])


def add_grid_flags(parser: argparse.ArgumentParser) -> None:
    """What the main job and a sweep share: which data, which seeds, how many processes."""
    parser.add_argument("--data", type="path", metavar="DIR", help="folder of public data; then name DATASET [SEED...]")
    parser.add_argument("--workers", type=int, default=0, help="processes; default 2 on the built-in benchmark, else 1")
    parser.add_argument("--check", action="store_true", help="run nothing: check the data, estimate time and memory")
    parser.add_argument("words", nargs="*", metavar="DATASET [SEED...]", help="default: the toy data sets, seeds 1 2 3")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every run")
    parser.add_argument("--others", action="store_true", help="score new-class tests on the other public sets too")
    parser.add_argument("--overwrite", action="store_true", help="do again what was run otherwise, and what came of it")


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    """What names a grid, for the workflow too."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {protocol: read_yaml(ROOT / "configs" / "tables" / f"{protocol}.yaml") for protocol in PROTOCOLS}
    pairs = "; ".join(f"{protocol}: {', '.join(table['methods'])}" for protocol, table in tables.items())
    parser.add_argument("--trainer", help=f"method pair, by protocol: {pairs}; default the first; or any stage 2")
    parser.add_argument("--protocol", help=f"one of {', '.join(PROTOCOLS)}; default the trainer's first")
    parser.add_argument("--all", action="store_true", help="every pair that has the protocol")
    add_grid_flags(parser)
    return parser


def check_keys(jobs: list[Job], pairs: Sequence[str]) -> None:
    """Refuse a config key that there is not, or a value that it cannot have, before anything runs."""
    seeds = [("SEED", job.arguments["SEED"]) for job in jobs]
    for some in dict.fromkeys([tuple(pairs), *seeds, *(job.pairs for job in jobs)]):
        merge_pairs(engine.full_config(), some)


def has_workflow() -> bool:
    """Is a snakemake here that `scripts/flow.py` works with?"""
    try:
        return int(importlib.metadata.version("snakemake").split(".")[0]) >= 9
    except importlib.metadata.PackageNotFoundError:
        return False


def complete(args: argparse.Namespace, workers: int = 0) -> None:
    """What was typed, with the environment and the usual number of processes. UserError for one below 0."""
    for name in ("workers", "gpus", "retries", "threads"):
        if getattr(args, name, 0) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}, expected 0 or more")
    args.workers = args.workers or workers or (1 if args.data else 2)
    args.dry_run = getattr(args, "dry_run", False) or os.environ.get("DRY_RUN") == "1"
    args.check = args.check and os.environ.get("DRY_RUN") != "1"  # which runs nothing


def main() -> int:
    parser = build_parser()
    args, _ = parser.parse_known_intermixed_args()  # --all takes the words of the workflow too
    if args.all and has_workflow():
        print("snakemake is installed: all pairs run as its workflow, as by scripts/flow.py", flush=True)
        os.execv(sys.executable, [sys.executable, str(ROOT / "scripts" / "flow.py"), *sys.argv[1:]])
    return run_job(parser.parse_intermixed_args())


def run_here(groups: list[list[Job]], args) -> tuple[str, bool]:
    """All groups in processes of this machine -> (what was run, whether something failed)."""
    failures = run_groups(groups, args.workers)
    return f"{len(groups)} cells" + (f", {len(failures)} failed" if failures else ""), bool(failures)


def plan_lines(groups: list[list[Job]], args) -> Iterator[str]:
    """The command lines that do the same, as a shell takes them."""
    yield from (f"export {name}={shlex.quote(folder(name, ''))}" for name in ("DATA", "OUTPUT") if os.environ.get(name))
    for job in (job for group in groups for job in group):
        for line in job.lines():
            yield f"# finished: {line}" if job.finished else line


def run_job(args, execute: Callable = run_here, lines: Callable = plan_lines, after=report, lock=None) -> int:
    """Plan, run and report; the exit status. UserError before anything runs.

    execute: runs groups of jobs; lines: what a dry run prints; after: makes the tables; lock: held while it runs.
    """
    complete(args)
    if args.data:
        os.environ["DATA"] = os.path.abspath(args.data)
    os.chdir(ROOT)
    groups = plan(args)
    jobs = [job for group in groups for job in group]
    check_keys(jobs, args.set)
    if args.dry_run:
        print(*lines(groups, args), sep="\n", flush=True)
        if not (args.check or args.overwrite):
            settle(jobs)
    if args.check:
        return check_job(jobs, args)
    if args.dry_run:
        return 0
    started = time.time()
    with lock or contextlib.nullcontext(), stoppable():
        unmade = settle(jobs, args.overwrite)
        what, failed = execute(groups, args)
        settle(unmade)
        failed = report_if_any(groups, after) or failed
    print(f"{time.time() - started:.0f} s for {what}")
    return int(failed)


def report_if_any(groups: list[list[Job]], after: Callable[[], None]) -> bool:
    """The tables, where a run is finished; whether that failed, which says why and ends nothing."""
    if not any(job.finished for group in groups for job in group):
        return False
    try:
        after()
    except (UserError, OSError) as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        return True
    return False


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
