"""The same experts, fused in other orders: no training, for an expert starts from the pretrained weights whatever
its place. It needs the kept experts, which a continual learner has not: an analysis, outside the protocol.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from condu.evaluation import Snapshot, snapshot_of
from condu.metrics import AccuracyMatrix
from condu.store import ExpertStore
from condu.stream import Stream, Task
from dassl.utils import UserError
from dassl.utils.progress import progress
from scripts.condu.bench import Bench, finished, read_matrix, vote_facts


@dataclass
class Experts:
    """Deltas and prototypes (C, D) by task name, in the order of the run."""

    deltas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    prototypes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, bench: Bench) -> "Experts":
        """All experts of a run. UserError if one was not kept."""
        store, own = ExpertStore(bench.run.experts), cls()
        for name in bench.names:
            found = store.load(name)
            if found is None:
                raise UserError(f"{store.folder} has no expert of {name}; train the stream with --keep-experts")
            own.deltas[name], own.prototypes[name], _ = found
        return own


def fuse(bench: Bench, experts: Experts, order: Sequence[str], scale: str = "") -> list[Snapshot]:
    """The stream after each of its sessions, fused in this order."""
    scale = scale or bench.cfg.TRAINER.CONDU.SCALE
    stream = Stream.new(backbone=bench.backbone, space=bench.space.facts(), scale=scale)
    tests, snapshots = {test.name: test for test in bench.tests}, []
    for name in order:
        task = Task(name, tests[name].classnames, tests[name].prompts)
        stream.add(task, experts.deltas[name], experts.prototypes[name])
        snapshots.append(snapshot_of(copy.deepcopy(stream), bench.space))
    return snapshots


def folder_of(bench: Bench, number: int, rule: str) -> Path:
    return bench.run.out / "orders" / f"{number:02d}_{rule}"


def evaluate_orders(
    bench: Bench, orders: dict[int, Sequence[str]], command: str = ""
) -> dict[str, dict[int, AccuracyMatrix]]:
    """Fuse and evaluate numbered orders -> {vote: {number: matrix}}; what is finished is read."""
    rules, found, experts = bench.rules(), {}, None
    tests = {test.name: test for test in bench.tests}
    for number, order in progress(orders.items(), "orders"):
        folders = {rule: folder_of(bench, number, rule) for rule in rules}
        if not all(map(finished, folders.values())):
            started, experts = time.monotonic(), experts or Experts.load(bench)
            snapshots = fuse(bench, experts, order)
            matrices = bench.evaluator.matrix(snapshots, [tests[name] for name in order], rules)
            for rule, folder in folders.items():
                vote = vote_facts(rule, rules[rule])
                bench.record(folder, matrices[rule], started, order=",".join(order), vote=vote, command=command)
        for rule, folder in folders.items():
            found.setdefault(rule, {})[number] = read_matrix(folder)
    return found
