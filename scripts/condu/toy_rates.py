"""Learning rates on the toy stream:  bash scripts/condu/toy_rates.sh [--choose] [--lora] [--rates a,b] [--tasks a,b,c]

For each rate the experts of all tasks are trained, tested one by one on their own task and on all others, and fused to
a stream, which votes. --choose: what the default rates are chosen by instead, the experts of CHOSEN_ON, trained without
the validation images and tested on them. What is finished is skipped.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import UserError, errors_in_one_line  # noqa: E402
from scripts.condu.orders import label_of, tasks_of  # noqa: E402
from scripts.condu.sessions import Run, train_stream  # noqa: E402
from scripts.condu.toy_stream import WORKERS, build_parser, together  # noqa: E402
from scripts.workers import pool  # noqa: E402

RATES = {"toy_ft": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3), "toy_lora": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
CHOSEN_ON, SEEDS = ("toy_objects", "toy_letters", "toy_counts"), (11, 12)
MEAN = "mean of own and others"


def rates(text: str) -> list[float]:
    """Of a command line, as a,b,c."""
    return [float(rate) for rate in text.split(",")]


def read(argv: list[str]) -> tuple[str, dict[tuple, list[Run]]]:
    """A command line -> the tasks to learn, as a,b,c, and {(CFG, rate): its run for each seed}, zero-shot CLIP's of ().
    UserError for an unknown data set, and for too few."""
    parser = build_parser("toy_rates", __doc__)
    parser.add_argument("--choose", action="store_true", help="choose the default rates, in place of whole streams")
    parser.add_argument("--rates", type=rates, metavar="a,b", help="default: those of docs/continual.md")
    args = parser.parse_intermixed_args(argv)
    tasks, pairs, seeds = tasks_of(args.tasks), tuple(args.opts), SEEDS if args.choose else [args.seed]
    learned = [task for task in tasks if task in CHOSEN_ON] if args.choose else tasks
    if len(tasks) < 2 or not learned:
        raise UserError(f"--tasks {args.tasks}: expected two or more, and to --choose one of {', '.join(CHOSEN_ON)}")
    home = Path(args.out).absolute() / f"{'choice' if args.choose else 'streams'}_{label_of(args.tasks)}"
    base = Run(home / "zero_shot", args.tasks, "toy_ft", 1, os.path.abspath(args.root), "", pairs, args.overwrite)
    if args.choose:
        base = replace(base, datasets="configs/datasets", pairs=("TEST.SPLIT", "val", *pairs))
    runs = {(): [base]}
    for cfg in list(RATES)[args.lora :]:
        for rate in args.rates or RATES[cfg]:
            own = replace(base, cfg=cfg, pairs=(*base.pairs, "OPTIM.LR", f"{rate:g}"))
            folders = {seed: home / cfg / f"lr_{rate:g}" / f"seed{seed}" for seed in seeds}
            runs[cfg, rate] = [replace(own, seed=s, out=f, experts=str(f / "experts")) for s, f in folders.items()]
    return ",".join(learned) if args.choose else args.tasks, runs


def measure(bench, learned: str, command: str) -> dict[str, float]:
    """Train the tasks `learned` (for zero-shot CLIP none) and test -> {column: percent}; what is finished is read."""
    from condu.store import ExpertStore
    from scripts.condu.bench import load_experts, vote_facts
    from scripts.condu.experiments import one_model

    run, whole = bench.run, learned == bench.run.order
    places = [place for place, task in enumerate(run.tasks) if task in tasks_of(learned)]
    facts = {"ablation": "zero-shot CLIP", "vote": None, "scale": None, "command": command}
    facts |= {"protocol": "mtil" if whole else "mtil_validation"}
    experts = {}
    if run.experts:
        train_stream(replace(run, order=learned))
        experts = load_experts(ExpertStore(run.experts), [bench.names[place] for place in places])
        facts["ablation"] = f"rate {bench.cfg.OPTIM.LR:g}, one expert for all tasks"
    deltas = [experts[name][0] if name in experts else None for name in bench.names]
    alone = bench.results({0: run.out / "alone"}, {0: facts}, lambda: [one_model(bench, deltas)])[0]
    own, rows = alone.accuracy.diagonal(), alone.accuracy.sum(1)
    found = {"own": own[places].mean().item(), "others": ((rows - own)[places] / (len(rows) - 1)).mean().item()}
    found[MEAN] = (found["own"] + found["others"]) / 2
    rules = bench.rules() if whole else {}
    matrices = dict.fromkeys(rules, alone)
    if experts and whole:
        facts |= {"ablation": f"rate {bench.cfg.OPTIM.LR:g}", "scale": bench.cfg.TRAINER.CONDU.SCALE}
        votes = {rule: facts | {"vote": vote_facts(rule, how)} for rule, how in rules.items()}
        folders = {rule: run.out / f"mtil_{rule}" for rule in rules}
        matrices = bench.results(
            folders, votes, lambda: bench.evaluator.matrix(bench.snapshots(), bench.tests, rules).values()
        )
    for rule, matrix in matrices.items():
        found |= {f"{rule} vote: {metric.capitalize()}": value for metric, value in matrix.summary().items()}
    return found


def sheet(learned: str, results: Mapping[tuple, Sequence[Mapping[str, float]]]):
    """Of {(CFG, rate): what `measure` gives for each seed} -> Sheet."""
    from dassl.report.stats import summarise
    from dassl.report.tables import SEEDS_LEGEND, Sheet, Table, show

    columns, rows, best = list(results[()][0]), [], {}
    for key, found in results.items():
        cells = {column: summarise(dict(enumerate(row[column] for row in found))) for column in columns}
        rows.append([f"{key[0]} {key[1]:g}" if key else "zero-shot CLIP", *map(show, cells.values())])
        if key:
            best[key[0]] = max(best.get(key[0], (0, 0)), (cells[MEAN].mean, key[1]))
    notes = [SEEDS_LEGEND, *(f"{cfg}: highest {MEAN} at {rate:g}" for cfg, (_, rate) in best.items())]
    heading = f"Learning rates, experts of {learned.replace(',', ', ')}"
    table = Table(heading, ["", *columns], rows, notes)
    return Sheet("rates", heading, [table], [], table.columns, rows)


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    argv = sys.argv[1:] if argv is None else argv
    learned, runs = read(argv)
    command = shlex.join(["python", "-m", "scripts.condu.toy_rates", *argv])
    with pool(WORKERS, threads=1) as workers:
        jobs = [(run, "toy_rates.measure", learned, command) for group in runs.values() for run in group]
        results = iter(together(workers, f"Training at {len(runs) - 1} rates", *jobs))
    made = sheet(learned, {key: [next(results) for _ in group] for key, group in runs.items()})
    paths = made.write(runs[()][0].out.parent)
    print("", made.tables[0].text(), "", *paths, sep="\n")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
