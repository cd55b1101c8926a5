"""ConDU on the built-in benchmark, whole:  bash scripts/condu/toy_stream.sh [--orders N] [--tasks a,b,c] [--lora]

Eight experts are trained, kept and fused; every session is evaluated, with the task known and unknown, beside five
baselines; the same experts are fused again in random orders, and once for each row of an ablation table. Two processes.
What is finished is skipped; everything lies in OUT/<cfg>/order_<order>/seed<k>.
"""

import argparse
import functools
import importlib
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from condu.orders import label_of, random_orders, tasks_of  # noqa: E402
from dassl.utils import ArgumentParser, UserError, atomic_write, errors_in_one_line  # noqa: E402
from dassl.utils.progress import progress, report_bars  # noqa: E402
from scripts.condu.sessions import Run, program  # noqa: E402
from scripts.workers import GONE, pool, quietly, tell_bar  # noqa: E402

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
    return args, [Run(o, args.tasks, cfg, k, root, e, pairs, args.overwrite) for k, (o, e) in places.items()]


def together(workers: tuple, what: str, *jobs: tuple) -> list:
    """Run jobs (run, "module.function" of this package, *arguments) at the same time under one bar, each with the
    worker's evaluator of the run as first argument, and say how long it took -> their results.

    workers: what `scripts.workers.pool` gives. Each failure is said when it happens, once; SystemExit after all.
    """
    executor, queue = workers
    print(f"{what} ...", flush=True)
    started = time.time()
    futures = [executor.submit(_job, number, *job) for number, job in enumerate(jobs)]
    waiting, parts, failures = set(futures), [0.0] * len(jobs), set()
    form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with progress(what=what, total=len(jobs), bar_format=form) as bar:
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                if (error := str(future.exception())) not in failures:
                    _say_failure(what, future)
                failures.add(error)
            while not queue.empty():
                number, part = queue.get()[1]
                parts[number] = max(parts[number], part)
            bar.update(sum(parts) - bar.n)
    if any(future.exception() for future in futures):
        sys.exit(1)
    print(f"{what}: {time.time() - started:.0f} s", flush=True)
    return [future.result() for future in futures]


def _say_failure(what: str, future: Future) -> None:
    """One line for bad input and for a lost process, a traceback for a bug."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        error = UserError(GONE)
    if isinstance(error, UserError | OSError | SystemExit):
        print(f"error: {what}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    elif error:
        traceback.print_exception(error)


@functools.lru_cache(maxsize=1)
def bench_of(run: Run):
    """The process's evaluator: test images and the pretrained model's features of them are kept between jobs."""
    from scripts.condu.evaluate import StreamEvaluation

    return StreamEvaluation(run)


def _job(number: int, run: Run, name: str, *arguments):
    """In a worker."""
    report_bars(lambda part: tell_bar("part", (number, part)))
    module, function = name.split(".")
    job = getattr(importlib.import_module(f"scripts.condu.{module}"), function)
    return quietly(lambda: job(bench_of(run), *arguments))


def run_all(workers: tuple, run: Run, count: int, command: str) -> dict:
    """Everything, in stages; what is finished is skipped -> the tables' content."""
    content = {}

    def stage(what: str, *jobs: tuple) -> list:
        return together(workers, what, *((run, *job) for job in jobs))

    names, _ = stage("Drawing the images", *[("evaluate.task_names",)] * WORKERS)
    training = ("experiments.train_experts",), ("experiments.train_sequential",)
    stage("Training experts, and one model in sequence", *training)
    known = ("evaluate.evaluate_stream", str(run.out / "mtil"), False, command)
    content["known"], content["baselines"] = stage(
        "Evaluating the stream and the baselines", known, ("experiments.evaluate_baselines", command)
    )
    unknown = ("evaluate.evaluate_stream", str(run.out / "agnostic"), True, command)
    content["agnostic"], content["ablations"] = stage(
        "Evaluating without task names, and the ablations", unknown, ("experiments.evaluate_ablations", command)
    )
    numbered = dict(enumerate(random_orders(names, count, run.seed)))
    shares = [{n: order for n, order in numbered.items() if n % WORKERS == k} for k in range(WORKERS)]
    halves = stage(
        f"Fusing {len(numbered)} random orders",
        *(("experiments.evaluate_orders", share, command) for share in shares),
    )
    content["orders"] = {rule: [m for half in halves for m in half.get(rule, {}).values()] for rule in halves[0]}
    (content["stages"],) = stage("Timing the stages", ("experiments.stages",))
    (content["figures"],) = stage("Drawing the figures", ("experiments.draw_figures",))
    return content


def plan(run: Run, count: int) -> Iterator[str]:
    """The sessions' command lines, and what comes after them."""
    yield from (shlex.join(program(run.argv(index))) for index in range(len(run.tasks)))
    yield f"# then the same tasks in sequence, baselines, ablations, {count} orders, tables and figures: {run.out}"


def report(run: Run, content: dict) -> str:
    """All tables."""
    from dassl.report.stats import summarise
    from dassl.report.table import Table, show
    from scripts.condu.evaluate import matrix_table, number, summary_table

    main = dict(content["baselines"])
    for (rule, labels), matrix in (content["known"] | content["agnostic"]).items():
        main[f"ConDU, {rule} vote" + (f", task unknown, {labels} labels" if labels else "")] = matrix
    tables = [matrix_table(content["known"]["paper", None], "ConDU, paper vote"), summary_table(main, "Accuracy in %")]
    for rule, orders in content["orders"].items():
        columns = zip(*(matrix.summary().values() for matrix in orders), strict=True)
        known = [{i: value for i, value in enumerate(values) if value is not None} for values in columns]
        cells = ["mean ± population deviation", *(show(summarise(values)) for values in known)]
        title = f"{len(orders)} random orders, {rule} vote"
        tables.append(Table(title, ["", "Transfer", "Average", "Last"], [cells] if orders else []))
    tables.append(summary_table(content["ablations"], "Ablations"))
    sizes = [(row["stage"], row["seconds"], row["bytes"] and row["bytes"] / 1e6) for row in content["stages"]]
    rows = [[stage, number(seconds), number(size)] for stage, seconds, size in sizes]
    tables.append(Table("Stages", ["", "seconds", "MB left"], rows))
    head = f"{run.cfg}, {len(run.tasks)} tasks, order {run.label}, seed {run.seed}: {run.out}"
    last = f"{len(content['figures'])} figures: {run.out / 'figures'}"
    return "\n\n".join([head, *(table.text() for table in tables), last])


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    argv = sys.argv[1:] if argv is None else argv
    args, runs = read(argv)
    if os.environ.get("DRY_RUN") == "1":
        print(*(line for run in runs for line in plan(run, args.orders)), sep="\n")
        return
    started, command = time.time(), shlex.join(["python", "-m", "scripts.condu.toy_stream", *argv])
    with pool(WORKERS, threads=1) as workers:
        for run in runs:
            text = report(run, run_all(workers, run, args.orders, command))
            with atomic_write(str(run.out / "tables.txt"), "w") as file:
                file.write(text + "\n")
            print(f"\n{text}\n{time.time() - started:.0f} s", flush=True)
    if args.seeds:
        from mergetune.report import main as report_over_seeds

        report_over_seeds([*(str(run.out) for run in runs), "--out", str(runs[0].out.parent)])


if __name__ == "__main__":
    with errors_in_one_line():
        main()
