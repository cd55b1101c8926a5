"""ConDU on the built-in benchmark, whole:  bash scripts/condu/toy_stream.sh [--orders N] [--tasks a,b,c] [--lora]

Eight experts are trained, kept and fused; every session is evaluated, with the task known and unknown, beside five
baselines; the same experts are fused again in random orders, and once for each row of an ablation table. Two processes.
What is finished is skipped; everything lies in OUT/<cfg>/order_<order>/seed<k>.
"""

import argparse
import functools
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from condu.orders import label_of, random_orders, tasks_of  # noqa: E402
from dassl.utils import ArgumentParser, UserError, atomic_write, errors_in_one_line  # noqa: E402
from dassl.utils.progress import progress  # noqa: E402
from scripts.condu.sessions import Run, program  # noqa: E402
from scripts.workers import GONE, pool, quietly  # noqa: E402

WORKERS = 2


def build_parser(script: str, about: str) -> argparse.ArgumentParser:
    """What the scripts of the toy stream share."""
    parser = ArgumentParser(
        prog=f"scripts/condu/{script}.sh", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", default="toy", metavar="a,b,c", help="data sets of configs/datasets/mtil; default: all toy ones")
    add("--lora", action="store_true", help="LoRA, no full fine-tuning")
    add("--seed", type=int, default=1)
    add("--seeds", type=int, nargs="+", metavar="K", help="several in place of one: means and deviations over them")
    add("--overwrite", action="store_true", help="do again what was made otherwise, and what came of it")
    add("--root", type="path", default="data", help="folder of all data sets")
    add("--out", type="path", default="output/mtil", help="below it lie all runs of ConDU")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def read(argv: list[str]) -> tuple[argparse.Namespace, list[Run]]:
    """A command line and its runs, one a seed. UserError for an unknown data set."""
    parser = build_parser("toy_stream", __doc__)
    parser.add_argument("--orders", type=int, default=20, metavar="N", help="random orders to fuse in; default 20")
    args = parser.parse_intermixed_args(argv)
    if args.orders < 0:
        raise UserError(f"--orders is {args.orders}, expected 0 or more")
    tasks_of(args.tasks)
    cfg = "toy_lora" if args.lora else "toy_ft"
    home = Path(args.out).absolute() / cfg
    order, root, pairs = home / f"order_{label_of(args.tasks)}", os.path.abspath(args.root), tuple(args.opts)
    places = {k: (order / f"seed{k}", str(home / "experts" / f"seed{k}")) for k in args.seeds or [args.seed]}
    command = shlex.join(["python", "-m", "scripts.condu.toy_stream", *argv])
    return args, [Run(o, args.tasks, cfg, k, root, e, pairs, args.overwrite, command) for k, (o, e) in places.items()]


def together(workers: tuple, what: str, *jobs: tuple) -> list:
    """Run jobs (run, function of its `StreamEvaluation` and of these arguments, *arguments) at the same time under one
    bar, and say how long it took -> their results.

    workers: what `scripts.workers.pool` gives. Each failure is said when it happens, once; SystemExit after all.
    """
    executor, _ = workers
    print(f"{what} ...", flush=True)
    started, failures = time.time(), set()
    futures = [executor.submit(_job, *job) for job in jobs]
    with progress(what=what, total=len(jobs)) as bar:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for error in filter(None, (future.exception() for future in done)):
                if str(error) not in failures:
                    _say_failure(what, error)
                failures.add(str(error))
            bar.update(len(done))
    if failures:
        sys.exit(1)
    print(f"{what}: {time.time() - started:.0f} s", flush=True)
    return [future.result() for future in futures]


def _say_failure(what: str, error: BaseException) -> None:
    """One line for bad input and for a lost process, a traceback for a bug."""
    if isinstance(error, BrokenProcessPool):
        error = UserError(GONE)
    if isinstance(error, UserError | OSError | SystemExit):
        print(f"error: {what}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


@functools.lru_cache(maxsize=1)
def bench_of(run: Run):
    """The process's evaluator: the pretrained CLIP, the data sets and class vectors are kept between jobs."""
    from scripts.condu.evaluate import StreamEvaluation

    return StreamEvaluation(run)


def _job(run: Run, function: Callable, *arguments):
    """In a worker."""
    return quietly(lambda: function(bench_of(run), *arguments))


def run_all(workers: tuple, run: Run, count: int) -> str:
    """Everything, in stages; what is finished is skipped -> all tables."""
    from scripts.condu import experiments
    from scripts.condu.evaluate import evaluate_stream, matrix_table, summary_table

    def stage(what: str, *jobs: tuple) -> list:
        return together(workers, what, *((run, *job) for job in jobs))

    names, _ = stage("Drawing the images", *[(attrgetter("names"),)] * WORKERS)
    training = (experiments.train_experts,), (experiments.train_sequential,)
    stage("Training experts, and one model in sequence", *training)
    known, main = stage(
        "Evaluating the stream and the baselines",
        (evaluate_stream, str(run.out / "mtil"), False),
        (experiments.evaluate_baselines,),
    )
    agnostic, ablations = stage(
        "Evaluating without task names, and the ablations",
        (evaluate_stream, str(run.out / "agnostic"), True),
        (experiments.evaluate_ablations,),
    )
    numbered = list(enumerate(random_orders(names, count, run.seed)))
    shares = [(experiments.evaluate_orders, dict(numbered[k::WORKERS])) for k in range(WORKERS)]
    orders = {key: m for share in stage(f"Fusing {len(numbered)} random orders", *shares) for key, m in share.items()}
    (figures,) = stage("Drawing the figures", (experiments.draw_figures,))
    for (rule, labels), matrix in (known | agnostic).items():
        main[f"ConDU, {rule} vote" + (f", task unknown, {labels} labels" if labels else "")] = matrix
    tables = [matrix_table(known["paper", None], "ConDU, paper vote"), summary_table(main, "Accuracy in %")]
    tables += [orders_table(rule, [orders[key] for key in orders if key[0] == rule]) for rule, _ in known]
    head = f"{run.cfg}, {len(run.tasks)} tasks, order {run.label}, seed {run.seed}: {run.out}"
    last = f"{len(figures)} figures: {run.out / 'figures'}"
    return "\n\n".join([head, *(t.text() for t in [*tables, summary_table(ablations, "Ablations")]), last])


def orders_table(rule: str, matrices: list):
    """Means and deviations of Transfer, Average and Last over orders."""
    from dassl.report.stats import summarise
    from dassl.report.table import Table, show

    columns = zip(*(matrix.summary().values() for matrix in matrices), strict=True)
    known = [{i: value for i, value in enumerate(values) if value is not None} for values in columns]
    cells = ["mean ± population deviation", *(show(summarise(values)) for values in known)]
    title = f"{len(matrices)} random orders, {rule} vote"
    return Table(title, ["", "Transfer", "Average", "Last"], [cells] if matrices else [])


def plan(run: Run, count: int) -> Iterator[str]:
    """The sessions' command lines, and what comes after them."""
    yield from (shlex.join(program(run.argv(index))) for index in range(len(run.tasks)))
    yield f"# then the same tasks in sequence, baselines, ablations, {count} orders, tables and figures: {run.out}"


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    args, runs = read(sys.argv[1:] if argv is None else argv)
    if os.environ.get("DRY_RUN") == "1":
        print(*(line for run in runs for line in plan(run, args.orders)), sep="\n")
        return
    started = time.time()
    with pool(WORKERS, threads=1) as workers:
        for run in runs:
            text = run_all(workers, run, args.orders)
            with atomic_write(str(run.out / "tables.txt"), "w") as file:
                file.write(text + "\n")
            print(f"\n{text}\n{time.time() - started:.0f} s", flush=True)
    if args.seeds:
        from mergetune.report import main as report_over_seeds

        report_over_seeds([*(str(run.out) for run in runs), "--out", str(runs[0].out.parent)])


if __name__ == "__main__":
    with errors_in_one_line():
        main()
