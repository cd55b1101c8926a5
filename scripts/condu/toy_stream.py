"""ConDU on the built-in benchmark, whole:  bash scripts/condu/toy_stream.sh [--orders N] [--tasks a,b,c] [--lora]

Eight experts are trained, kept and fused; every session is evaluated, with the task known and unknown, beside five
baselines; the same experts are fused again in random orders, and once for each row of an ablation table. Two processes.
What is finished is skipped; everything lies in OUT/<cfg>/order_<order>/seed<k>.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import ArgumentParser, UserError, atomic_write, errors_in_one_line  # noqa: E402
from scripts.condu import toy_jobs as jobs  # noqa: E402
from scripts.condu.orders import label_of, random_orders, tasks_of  # noqa: E402
from scripts.condu.sessions import Run, program  # noqa: E402
from scripts.condu.toy_jobs import WORKERS, together  # noqa: E402
from scripts.workers import pool  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="scripts/condu/toy_stream.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--orders", type=int, default=20, metavar="N", help="random orders to fuse the experts in; default 20")
    add("--tasks", default="toy", metavar="a,b,c", help="data sets of configs/datasets/mtil; default: all toy ones")
    add("--lora", action="store_true", help="LoRA in place of full fine-tuning")
    add("--seed", type=int, default=1)
    add("--root", type="path", default="data", help="folder of all data sets")
    add("--out", type="path", default="output/mtil", help="below it lie all runs of ConDU")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys that win over all else")
    return parser


def read(argv: list[str]) -> tuple[argparse.Namespace, Run]:
    """A command line and the run it is about. UserError for an unknown data set."""
    args = build_parser().parse_intermixed_args(argv)
    if args.orders < 0:
        raise UserError(f"--orders is {args.orders}, expected 0 or more")
    tasks_of(args.tasks)
    cfg = "toy_lora" if args.lora else "toy_ft"
    home = Path(args.out).absolute() / cfg
    out, experts = home / f"order_{label_of(args.tasks)}" / f"seed{args.seed}", home / "experts" / f"seed{args.seed}"
    return args, Run(out, args.tasks, cfg, args.seed, os.path.abspath(args.root), str(experts), tuple(args.opts))


def run_all(run: Run, count: int, command: str) -> dict:
    """Everything, in stages; what is finished is skipped -> the tables' content."""
    found = {}
    with pool(WORKERS, threads=1) as workers:
        names, _ = together(workers, "Drawing the pictures", (jobs.draw, run), (jobs.warm_up,))
        sequential = (jobs.learn_in_sequence, run, names)
        together(workers, "Training experts, and one model in sequence", (jobs.learn, run), sequential)
        known = (jobs.evaluate, run, False, command)
        found["known"], found["baselines"] = together(
            workers, "Evaluating the stream and the baselines", known, (jobs.baselines, run, command)
        )
        unknown = (jobs.evaluate, run, True, command)
        found["agnostic"], found["ablations"] = together(
            workers, "Evaluating without task names, and the ablations", unknown, (jobs.ablations, run, command)
        )
        numbered = dict(enumerate(random_orders(names, count, run.seed)))
        shares = [{n: order for n, order in numbered.items() if n % WORKERS == k} for k in range(WORKERS)]
        halves = together(
            workers, f"Fusing {len(numbered)} random orders", *((jobs.orders, run, share, command) for share in shares)
        )
        found["orders"] = {rule: [m for half in halves for m in half.get(rule, {}).values()] for rule in halves[0]}
        (found["stages"],) = together(workers, "Timing the stages", (jobs.stages, run))
        (found["figures"],) = together(workers, "Drawing the figures", (jobs.figures, run))
    return found


def plan(run: Run, count: int) -> Iterator[str]:
    """The sessions' command lines, and what comes after them."""
    yield from (shlex.join(program(run.argv(index))) for index in range(len(run.tasks)))
    yield f"# then the same tasks in sequence, baselines, ablations, {count} orders, tables and figures: {run.out}"


def report(run: Run, found: dict) -> Iterator[str]:
    """The lines of all tables."""
    from scripts.condu import show

    matrices = found["known"] | found["agnostic"]
    main = dict(found["baselines"])
    for (rule, labels), matrix in matrices.items():
        main[f"ConDU, {rule} vote" + (f", task unknown, {labels} labels" if labels else "")] = matrix
    yield f"{run.cfg}, {len(run.tasks)} tasks, order {run.label}, seed {run.seed}: {run.out}"
    yield ""
    yield from show.whole(found["known"]["paper", None], "ConDU, paper vote")
    yield ""
    yield from show.summary(main, "Accuracy in %")
    for rule, orders in found["orders"].items():
        yield ""
        yield show.head(f"{len(orders)} random orders, {rule} vote")
        columns = [[matrix.summary()[key] for matrix in orders] for key in show.METRICS]
        yield show.row("mean ± population deviation", [show.spread(values) for values in columns])
    yield ""
    yield from show.summary(found["ablations"], "Ablations")
    yield ""
    yield show.head("Stages", ("seconds", "MB left"))
    for stage in found["stages"]:
        size = None if stage["bytes"] is None else stage["bytes"] / 1e6
        yield show.row(stage["stage"], [show.number(stage["seconds"]), show.number(size)])
    yield ""
    yield f"{len(found['figures'])} figures: {run.out / 'figures'}"


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    argv = sys.argv[1:] if argv is None else argv
    args, run = read(argv)
    if os.environ.get("DRY_RUN") == "1":
        print(*plan(run, args.orders), sep="\n")
        return
    started = time.time()
    found = run_all(run, args.orders, shlex.join(["python", "-m", "scripts.condu.toy_stream", *argv]))
    text = "\n".join(report(run, found))
    with atomic_write(str(run.out / "tables.txt"), "w") as file:
        file.write(text + "\n")
    print(f"\n{text}\n{time.time() - started:.0f} s")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
