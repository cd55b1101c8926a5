"""All sessions of a trained stream in one pass over the test pictures: matrices, results.json, three numbers."""

from collections.abc import Mapping
from pathlib import Path

from condu.evaluation import LABELS
from condu.metrics import AccuracyMatrix
from condu.voting import Vote
from dassl.utils.distributed import is_main
from scripts.condu import show
from scripts.condu.bench import StreamEvaluation, vote_facts
from scripts.condu.sessions import Run

Matrices = dict[tuple[str, str | None], AccuracyMatrix]  # (vote, label space) -> matrix; label space None: task known


def evaluate_stream(bench: StreamEvaluation, out: str, agnostic: bool, command: str = "") -> Matrices:
    """Evaluate every session by every vote, and print it; what is finished is read, not repeated.

    Several processes look at a share of the pictures each; the main one prints and writes.

    Writes `out`_<vote>/results.json, task-agnostic `out`_<labels>_<vote>/results.json.
    UserError: no such stream, or sessions are missing.
    """
    rules = bench.rules()
    folders, facts = asked(rules, out, agnostic, command)

    def measure() -> list[AccuracyMatrix]:
        """One sweep for all."""
        sweep = bench.evaluator.sweep(bench.snapshots(), bench.tests, rules, agnostic)
        if not agnostic:
            return list(sweep.mtil().values())
        known, by_rule = sweep.known(), sweep.agnostic()
        for own in facts.values():
            own["known"] = known
        return [by_rule[rule][labels] for rule, labels in facts]

    matrices = bench.results(folders, facts, measure)
    if is_main():
        show_all(bench.run, folders, matrices)
    return matrices


def asked(rules: Mapping[str, Vote], out: str, agnostic: bool, command: str = "") -> tuple[dict, dict]:
    """{(vote, label space): folder}, and what the results there say of themselves."""
    facts, protocol = {}, "mtil_agnostic" if agnostic else "mtil"
    for labels in LABELS if agnostic else (None,):
        for rule in rules:
            vote = vote_facts(rule, rules[rule])
            facts[rule, labels] = {"protocol": protocol, "labels": labels, "vote": vote, "command": command}
    return {key: Path("_".join([out, *filter(None, reversed(key))])) for key in facts}, facts


def show_all(run: Run, folders: dict, matrices: Matrices) -> None:
    """Print every matrix, then the three numbers of each."""
    named = {}
    for (rule, labels), matrix in matrices.items():
        name = f"vote {rule}" + (f", labels {labels}" if labels else "")
        print(f"\n{name}: {folders[rule, labels]}", *show.whole(matrix, "after"), sep="\n")
        named[name] = matrix
    print()
    print(*show.summary(named, f"{run.cfg}, order {run.label}, seed {run.seed}"), sep="\n")
