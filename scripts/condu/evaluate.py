"""All sessions of a trained stream in one pass over the test pictures: matrices, results.json, three numbers."""

import time
from pathlib import Path

from condu.metrics import AccuracyMatrix
from dassl.utils.distributed import broadcast, is_main
from scripts.condu import show
from scripts.condu.bench import Bench, finished, read_matrix, vote_facts
from scripts.condu.sessions import Run

LABELS = ("target", "union")
Matrices = dict[tuple[str, str | None], AccuracyMatrix]  # (vote, label space) -> matrix; label space None: task known


def evaluate_stream(
    run: Run, out: str, *, agnostic: bool, overwrite: bool = False, command: str = "", bench: Bench | None = None
) -> Matrices:
    """Evaluate every session by every vote, and print it; what is finished is read, not repeated.

    Several processes look at a share of the pictures each; the main one prints and writes.

    Writes `out`_<vote>/results.json, task-agnostic `out`_<labels>_<vote>/results.json.
    UserError: no such stream, or sessions are missing.
    """
    bench = bench or Bench(run)
    folders = result_folders(bench, out, agnostic)
    if broadcast(all(map(finished, folders.values())) and not overwrite):
        matrices = {key: read_matrix(folder) for key, folder in folders.items()}
    else:
        matrices = measure(bench, folders, agnostic, command)
    if is_main():
        show_all(run, folders, matrices)
    return matrices


def show_all(run: Run, folders: dict, matrices: Matrices) -> None:
    """Print every matrix, then the three numbers of each."""
    for (rule, labels), matrix in matrices.items():
        print(f"\nvote {rule}" + (f", labels {labels}" if labels else "") + f": {folders[rule, labels]}")
        print(*show.whole(matrix, "after"), sep="\n")
    print()
    named = {f"vote {rule}" + (f", labels {labels}" if labels else ""): m for (rule, labels), m in matrices.items()}
    print(*show.summary(named, f"{run.cfg}, order {run.label}, seed {run.seed}"), sep="\n")


def result_folders(bench: Bench, out: str, agnostic: bool) -> dict[tuple[str, str | None], Path]:
    """Where the results of each vote and label space go."""
    rules = bench.rules()
    if agnostic:
        return {(rule, labels): Path(f"{out}_{labels}_{rule}") for labels in LABELS for rule in rules}
    return {(rule, None): Path(f"{out}_{rule}") for rule in rules}


def measure(bench: Bench, folders: dict, agnostic: bool, command: str) -> Matrices:
    """One sweep, and a results.json for each matrix of it."""
    started, rules = time.monotonic(), bench.rules()
    sweep = bench.evaluator.sweep(bench.snapshots(), bench.tests, rules, agnostic)
    known, found = sweep.known(), {}
    by_rule = sweep.agnostic() if agnostic else {rule: {None: matrix} for rule, matrix in sweep.mtil().items()}
    for rule, labels in folders:
        found[rule, labels] = by_rule[rule][labels]
        bench.record(
            folders[rule, labels],
            found[rule, labels],
            started,
            protocol="mtil_agnostic" if agnostic else "mtil",
            labels=labels,
            vote=vote_facts(rule, rules[rule]),
            known=known if agnostic else None,
            command=command,
        )
    return found
