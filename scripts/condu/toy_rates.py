"""Learning rates on the toy stream:  bash scripts/condu/toy_rates.sh [--choose] [--lora] [--rates R ...]

For each rate all experts are trained, tested one by one on their own task and on the others, and fused to a stream,
which votes. --choose: the rate with the highest mean of own and other accuracy instead, of the experts of CHOSEN_ON,
trained without the validation images and tested on them. What is finished is skipped.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from condu.orders import label_of, tasks_of  # noqa: E402
from dassl.utils import UserError, errors_in_one_line  # noqa: E402
from scripts.condu.sessions import Run, train_stream  # noqa: E402
from scripts.condu.toy_stream import WORKERS, build_parser, together  # noqa: E402
from scripts.workers import pool  # noqa: E402

RATES = {"toy_ft": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3), "toy_lora": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
CHOSEN_ON, SEEDS = ("toy_objects", "toy_letters", "toy_counts"), (11, 12)
MEAN = "mean of own and others"


def read(argv: list[str]) -> tuple[str, dict[str, list[Run]]]:
    """A command line -> the tasks to learn, as a,b,c, and {row of the table: its run for each seed}, zero-shot CLIP's
    without experts. UserError for an unknown data set, and for too few."""
    parser = build_parser("toy_rates", __doc__)
    parser.add_argument("--choose", action="store_true", help="a rate by validation images, not whole streams")
    parser.add_argument("--rates", type=float, nargs="+", metavar="R", help="default: six from 3e-6, LoRA from 3e-5")
    args = parser.parse_intermixed_args(argv)
    learned, pairs, seeds = args.tasks, tuple(args.opts), args.seeds or (SEEDS if args.choose else [args.seed])
    if args.choose:
        learned, pairs = ",".join(t for t in tasks_of(args.tasks) if t in CHOSEN_ON), ("TEST.SPLIT", "val", *pairs)
    if len(tasks_of(args.tasks)) < 2 or not learned:
        raise UserError(f"--tasks {args.tasks}: expected two or more, and to --choose one of {', '.join(CHOSEN_ON)}")
    if not all(0 < rate < float("inf") for rate in args.rates or ()):
        raise UserError(f"--rates: expected numbers above 0, but got {' '.join(f'{rate:g}' for rate in args.rates)}")
    home = Path(args.out).absolute() / f"{'choice' if args.choose else 'streams'}_{label_of(args.tasks)}"
    command, root = shlex.join(["python", "-m", "scripts.condu.toy_rates", *argv]), os.path.abspath(args.root)
    base = Run(home / "zero_shot", args.tasks, "toy_ft", 1, root, "", pairs, args.overwrite, command)
    base = replace(base, datasets="configs/datasets") if args.choose else base
    runs = {"zero-shot CLIP": [base]}
    for cfg, rate in [(name, f"{x:g}") for name in [*RATES][args.lora :] for x in args.rates or RATES[name]]:
        at_rate = replace(base, cfg=cfg, pairs=(*pairs, "OPTIM.LR", rate))
        places = {seed: home / cfg / f"lr_{rate}" / f"seed{seed}" for seed in seeds}
        runs[f"{cfg} {rate}"] = [replace(at_rate, seed=k, out=f, experts=str(f / "experts")) for k, f in places.items()]
    return learned, runs


def measure(bench, learned: str) -> dict[str, float]:
    """Train the tasks `learned` (for zero-shot CLIP none) and test -> {column: percent}; what is finished is read."""
    from condu.state import ExpertStore
    from scripts.condu.evaluate import vote_facts
    from scripts.condu.experiments import by_votes, one_model

    run, rules = bench.run, bench.rules() if learned == bench.run.order else {}
    places = [place for place, task in enumerate(run.tasks) if task in tasks_of(learned)]
    model, deltas = "zero-shot CLIP", dict.fromkeys(bench.names)
    if run.experts:
        train_stream(replace(run, order=learned))
        deltas |= {bench.names[place]: ExpertStore(run.experts).load(bench.names[place])[0] for place in places}
        model = f"rate {bench.cfg.OPTIM.LR:g}"
    facts = {"protocol": "mtil" if rules else "mtil_validation", "ablation": model}
    alone = run.out / "alone", facts | {"ablation": f"{model}, one model for all tasks"}
    matrix = bench.results({"alone": alone}, lambda: [one_model(bench, deltas.values())])["alone"]
    diagonal, rows = matrix.accuracy.diagonal()[places], matrix.accuracy.sum(1)[places]
    percent = {"own": diagonal.mean().item(), "others": ((rows - diagonal) / (len(run.tasks) - 1)).mean().item()}
    percent[MEAN] = (percent["own"] + percent["others"]) / 2
    votes = dict.fromkeys(rules, matrix)
    if run.experts:
        by_rule = {rule: (run.out / f"mtil_{rule}", facts | vote_facts(rule, how)) for rule, how in rules.items()}
        votes = bench.results(by_rule, lambda: by_votes(bench, bench.snapshots(), rules))
    return percent | {f"{rule}: {key}": value for rule, vote in votes.items() for key, value in vote.summary().items()}


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    learned, runs = read(sys.argv[1:] if argv is None else argv)
    with pool(WORKERS, threads=1) as workers:
        jobs = [(run, measure, learned) for several in runs.values() for run in several]
        measured = iter(together(workers, f"Training at {len(runs) - 1} rates", *jobs))
    from dassl.report.frame import summarise
    from dassl.report.table import SEEDS_LEGEND, Report, Table, show

    parts = {name: [next(measured) for _ in several] for name, several in runs.items()}
    columns = list(parts["zero-shot CLIP"][0])
    cells = {name: [summarise({k: m[c] for k, m in enumerate(rows)}) for c in columns] for name, rows in parts.items()}
    by_cfg = [[name for name in cells if name.startswith(f"{cfg} ")] for cfg in RATES]
    best = [max(names, key=lambda name: cells[name][columns.index(MEAN)].mean) for names in by_cfg if names]
    title = f"Learning rates; own accuracy is that of {learned.replace(',', ', ')}"
    notes = [SEEDS_LEGEND, f"highest {MEAN}: {', '.join(best)}"]
    table = Table(title, ["rate", *columns], [[name, *map(show, row)] for name, row in cells.items()], notes)
    made = Report("rates", title, [table], [], table.columns, table.rows)
    print("", table.text(), "", *made.write(runs["zero-shot CLIP"][0].out.parent), sep="\n")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
