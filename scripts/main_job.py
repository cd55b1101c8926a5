"""The main job: every data set and seed through a method pair and a protocol, then the tables and the path figures.

    bash train.sh                                   the built-in benchmark
    bash train.sh --trainer MMA --protocol cross    another method pair, another protocol
    bash train.sh --data DIR caltech101 1 2 3       public data and OpenAI weights

Cells (see `workers.py`) are data sets and seeds; in the protocols with a source, sources and seeds. What is finished
is skipped; what was killed continues. DRY_RUN=1 prints the command lines and runs nothing.
"""

import argparse
import importlib.metadata
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import ArgumentParser  # noqa: E402
from scripts.check_job import check_job  # noqa: E402
from scripts.commands import folder  # noqa: E402
from scripts.jobs import PROTOCOLS  # noqa: E402
from scripts.plans import plan, table_methods  # noqa: E402
from scripts.steps import Step, settle  # noqa: E402
from scripts.stopping import stoppable  # noqa: E402
from scripts.workers import run_cells  # noqa: E402
from scripts.workflow.grid import step_lines  # noqa: E402


def report(*more: str) -> None:
    """Tables and figures of everything below OUTPUT."""
    from mergetune.report import main as report_main

    output = folder("OUTPUT", "output")
    report_main([output, "--out", output, "--figures", *more])


def add_grid_flags(parser: argparse.ArgumentParser) -> None:
    """What the main job and a sweep share: which data, which seeds, how many processes."""
    parser.add_argument("--data", type="path", metavar="DIR", help="folder of public data; then name DATASET [SEED...]")
    parser.add_argument("--workers", type=int, default=0, help="processes; default 2 on the built-in benchmark, else 1")
    parser.add_argument("--check", action="store_true", help="run nothing: check the data, estimate time and memory")
    parser.add_argument("words", nargs="*", metavar="DATASET [SEED...]", help="default: the toy data sets, seeds 1 2 3")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every run")
    parser.add_argument("--others", action="store_true", help="score new-class tests on the other public sets too")
    parser.add_argument("--overwrite", action="store_true", help="do again what was run otherwise, and what came of it")


def check_keys(steps: list[Step], pairs: Sequence[str]) -> None:
    """Refuse a config key that there is not, or a value that it cannot have, before anything runs."""
    from dassl.config import merge_pairs
    from dassl.engine import full_config

    seeds = [("SEED", step.arguments["SEED"]) for step in steps]
    for some in dict.fromkeys([tuple(pairs), *seeds, *(step.pairs for step in steps)]):
        merge_pairs(full_config(), some)


def build_parser(description: str = __doc__) -> argparse.ArgumentParser:
    """What names a grid, for the workflow too."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    pairs = "; ".join(f"{protocol}: {', '.join(table_methods(protocol))}" for protocol in PROTOCOLS)
    parser.add_argument("--trainer", help=f"method pair, by protocol: {pairs}; default the first; or any stage 2")
    parser.add_argument("--protocol", help=f"one of {', '.join(PROTOCOLS)}; default the trainer's first")
    parser.add_argument("--all", action="store_true", help="every pair that has the protocol")
    add_grid_flags(parser)
    return parser


def has_workflow() -> bool:
    """Is a snakemake here that `scripts/flow.py` works with?"""
    try:
        return int(importlib.metadata.version("snakemake").split(".")[0]) >= 9
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> int:
    parser = build_parser()
    args, _ = parser.parse_known_intermixed_args()  # --all takes the words of the workflow too
    if args.all and has_workflow():
        print("snakemake is installed: all pairs run as its workflow, as by scripts/flow.py", flush=True)
        os.execv(sys.executable, [sys.executable, str(ROOT / "scripts" / "flow.py"), *sys.argv[1:]])
    return run_job(parser.parse_intermixed_args())


def run_job(args, after=report) -> int:
    """Plan, run and report; the exit status. UserError before anything runs."""
    from dassl.utils import UserError

    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}, expected at least 1")
    if args.data:
        os.environ["DATA"] = os.path.abspath(args.data)
    os.chdir(ROOT)
    cells = plan(args)
    steps = [step for cell in cells for step in cell]
    if os.environ.get("DRY_RUN") == "1":
        print(*plan_lines(cells), sep="\n", flush=True)
        if not args.overwrite:
            settle(steps)
        return 0
    check_keys(steps, args.set)
    workers = args.workers or (1 if args.data else 2)
    if args.check:
        return check_job(plan, args, workers)
    started = time.time()
    with stoppable():
        unmade = settle(steps, args.overwrite)
        failures = run_cells(cells, workers)
        settle(unmade)
        left = report_if_any(cells, after)
    print(f"{time.time() - started:.0f} s for {len(cells)} cells" + (f", {len(failures)} failed" if failures else ""))
    return 1 if failures or left else 0


def plan_lines(cells: list[list[Step]]) -> Iterator[str]:
    """The command lines that do the same, as a shell takes them."""
    yield from (f"export {name}={shlex.quote(folder(name, ''))}" for name in ("DATA", "OUTPUT") if os.environ.get(name))
    for step in (step for cell in cells for step in cell):
        for line in step_lines(step, "python"):
            yield f"# finished: {line}" if step.finished else line


def report_if_any(cells, after) -> int:
    """The tables, where a run is finished; the exit status. One that fails says why, and ends nothing."""
    if not any(step.finished for cell in cells for step in cell):
        return 0
    try:
        after()
    except SystemExit as error:
        if not isinstance(error.code, str):  # a signal
            raise
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from dassl.utils import errors_in_one_line

    with errors_in_one_line():
        sys.exit(main())
