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
from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

import mergetune  # noqa: E402
from condu.orders import label_of, random_orders, tasks_of  # noqa: E402
from dassl.utils import ArgumentParser, UserError, errors_in_one_line  # noqa: E402
from dassl.utils.progress import progress  # noqa: E402
from scripts.condu.sessions import Run  # noqa: E402
from scripts.workers import GONE, outcome, pool  # noqa: E402

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


def together(executor: Executor, what: str, *jobs: tuple) -> list:
    """Run jobs (run, function of its `StreamEvaluation` and of these arguments, *arguments) at the same time under one
    bar, and say how long it took -> their results.

    Each failure is said when it happens, once; SystemExit after all.
    """
    print(f"{what} ...", flush=True)
    started, failures = time.time(), set()
    futures = [executor.submit(outcome, what, _job, *job) for job in jobs]
    for future in progress(as_completed(futures), what, total=len(jobs)):
        try:
            failure = future.result()[1]
        except BrokenProcessPool:
            failure = f"{what}: {GONE}"
        if failure and failure not in failures:
            print(f"error: {failure}", file=sys.stderr, flush=True)
            failures.add(failure)
    if failures:
        sys.exit(1)
    print(f"{what}: {time.time() - started:.0f} s", flush=True)
    return [future.result()[0] for future in futures]


@functools.lru_cache(maxsize=1)
def bench_of(run: Run):
    """The process's evaluator: the pretrained CLIP, the data sets and class vectors are kept between jobs."""
    from scripts.condu.evaluate import StreamEvaluation

    return StreamEvaluation(run)


def _job(run: Run, function: Callable, *arguments):
    """In a worker."""
    return function(bench_of(run), *arguments)


def run_all(workers: Executor, run: Run, count: int) -> None:
    """Everything, in stages; what is finished is skipped."""
    from scripts.condu import experiments
    from scripts.condu.evaluate import evaluate_stream

    def stage(what: str, *jobs: tuple) -> list:
        return together(workers, what, *((run, *job) for job in jobs))

    names, _ = stage("Drawing the images", *[(attrgetter("names"),)] * WORKERS)
    training = (experiments.train_experts,), (experiments.train_sequential,)
    stage("Training experts, and one model in sequence", *training)
    known = (evaluate_stream, str(run.out / "mtil"), False)
    stage("Evaluating the stream and the baselines", known, (experiments.evaluate_baselines,))
    unknown = (evaluate_stream, str(run.out / "agnostic"), True)
    stage("Evaluating without task names, and the ablations", unknown, (experiments.evaluate_ablations,))
    orders = list(enumerate(random_orders(names, count, run.seed)))
    shares = [(experiments.evaluate_orders, dict(orders[k::WORKERS])) for k in range(WORKERS)]
    stage(f"Fusing {len(orders)} random orders", *shares)
    stage("Encoding the images of the t-SNE", (experiments.write_features,))


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    args, runs = read(sys.argv[1:] if argv is None else argv)
    started = time.time()
    with pool(WORKERS, threads=1) as workers:
        for run in runs:
            run_all(workers, run, args.orders)
    report = mergetune.report.main
    for run in runs:
        report([str(run.out), "--figures"])
    if args.seeds:
        report([*(str(run.out) for run in runs), "--out", str(runs[0].out.parent)])
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
