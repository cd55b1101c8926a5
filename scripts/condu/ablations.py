"""One table of what happens if a piece of ConDU is left out or replaced.

Each row fuses the same experts in the run's order and is counted on the same pictures. Unless the row says so, the
scale is that of the CFG, prototypes come from the pretrained CLIP, and the vote is the paper's.
Letters: T tasks, D joint width, C classes.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from condu.delta import SCALES, unify
from condu.evaluation import Snapshot, prototypes_of
from condu.metrics import AccuracyMatrix
from condu.voting import PRESETS, Vote
from dassl.utils import read_json, write_json
from dassl.utils.progress import progress
from scripts.condu import baselines
from scripts.condu.any_order import Experts, fuse
from scripts.condu.bench import Bench, finished, read_matrix, vote_facts

PAPER, RELEASED = PRESETS["paper"], PRESETS["released"]
Rows = Iterator[tuple[str, AccuracyMatrix, dict]]  # title, matrix, and facts that differ from ConDU's own


def votes(bench: Bench, snapshots: list[Snapshot]) -> Rows:
    """ConDU itself, and every number of voting experts, without and with the pretrained model's vote."""
    counts = range(1, len(bench.names) + 1)
    rules = {"ConDU": PAPER} | {f"k = {k}": replace(PAPER, k=k) for k in counts}
    rules |= {f"with CLIP's vote, uniform, k = {k}": replace(RELEASED, k=k) for k in counts}
    for title, matrix in bench.evaluator.matrix(snapshots, bench.tests, rules).items():
        yield title, matrix, {"vote": vote_facts("paper" if title == "ConDU" else "", rules[title])}


def scales(bench: Bench, experts: Experts) -> Rows:
    """The other scales of a trigger, none at all among them."""
    for scale in SCALES:
        if scale != bench.cfg.TRAINER.CONDU.SCALE:
            snapshots = fuse(bench, experts, bench.names, scale)
            yield f"scale {scale}", paper_matrix(bench, snapshots), {"scale": scale}


def expert_prototypes(bench: Bench, snapshots: list[Snapshot], experts: Experts) -> Rows:
    """Prototypes (C, D) from each expert's own features, and similarities by the expert that answers."""
    found = []
    for cfg, dataset, test in zip(bench.cfgs, bench.datasets, bench.tests, strict=True):
        expert = baselines.member(bench, experts.deltas[test.name])
        clip = bench.evaluator.slots.clip(expert.key, expert.fill)
        loader = bench.loader(cfg, dataset.train_x)
        found.append(prototypes_of(clip, loader, test.classnames, test.prompts, bench.autocast))
    own = [replace(s, prototypes=found[: len(s.tasks)], prototype_source="expert") for s in snapshots]
    yield "prototypes of the experts", paper_matrix(bench, own), {}


def plain_average(bench: Bench) -> Rows:
    """The pretrained weights and the mean of all deltas so far: the baseline of that name."""
    folder = bench.run.baselines / "average"
    matrix = read_matrix(folder) if finished(folder) else baselines.matrix_of(bench, "average")
    yield "plain average", matrix, {"scale": None, "vote": None}


def without_decoupling(bench: Bench, experts: Experts) -> Rows:
    """Each session unifies the last unified delta itself with the new one: no triggers, one model for all tasks."""
    unified: list[Mapping[str, Tensor]] = []
    for delta in experts.deltas.values():
        unified.append(unify([unified[-1], delta])[0] if unified else delta)
    yield "unified without decoupling", baselines.one_model(bench, unified), {"scale": None, "vote": None}


def paper_matrix(bench: Bench, snapshots: list[Snapshot], rule: Vote = PAPER) -> AccuracyMatrix:
    """The matrix by one vote."""
    return bench.evaluator.matrix(snapshots, bench.tests, {"": rule})[""]


def evaluate_ablations(bench: Bench, command: str = "") -> dict[str, AccuracyMatrix]:
    """All rows by title, each with its results.json; what is finished is read."""
    root = bench.run.out / "ablations"
    marker = root / "titles.json"  # written last
    if marker.is_file():
        return {title: read_matrix(root / folder) for title, folder in read_json(marker).items()}
    experts = Experts.load(bench)
    snapshots = fuse(bench, experts, bench.names)
    parts: list[Callable[[], Rows]] = [
        lambda: votes(bench, snapshots),
        lambda: scales(bench, experts),
        lambda: expert_prototypes(bench, snapshots, experts),
        lambda: plain_average(bench),
        lambda: without_decoupling(bench, experts),
    ]
    found, folders = {}, {}
    for part in progress(parts, "ablations"):
        started = time.monotonic()
        for title, matrix, own in part():
            folders[title] = "".join(c if c.isalnum() else "_" for c in title)
            facts = {"ablation": title, "vote": vote_facts("paper", PAPER), "command": command} | own
            bench.record(root / folders[title], matrix, started, **facts)
            found[title], started = matrix, time.monotonic()
    write_json(folders, marker)
    return found
