"""Evaluation of a trained stream: what a process shares for it (the pretrained CLIP, test sets, an evaluator, records),
and all sessions in one pass over the test images. Letters: T tasks of the order.
"""

import copy
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from torch import Tensor

import train
from condu.evaluation import LABELS, Evaluator, ExpertCache, write_matrix
from condu.metrics import AccuracyMatrix
from condu.snapshot import Snapshot, TestSet, ordered_loader, prompts_of, snapshot_of, task_of
from condu.state import ExpertStore, Stream, session_digest, sessions
from condu.tuning import build_space
from condu.voting import PRESETS, Vote, vote_rule
from dassl.clip import build_clip_from_cfg, check_input
from dassl.data.data_manager import build_dataset
from dassl.engine.precision import Precision
from dassl.engine.recipe import changed, finished, input_digests, recipe, role
from dassl.report.protocols.mtil import AGNOSTIC, MTIL, mtil_report
from dassl.report.records import load_results
from dassl.utils import MissingFile, UserError
from dassl.utils.distributed import broadcast, is_main
from mergetune.report import METHODS
from scripts.condu.sessions import Run

OWN = "own"  # name of a vote that is none of the presets
Matrices = dict[tuple[str, str | None], AccuracyMatrix]  # (vote, label space) -> matrix; label space None: task known
Rows = Mapping[Hashable, tuple[Path, dict]]  # key -> (folder of a result, what its results.json says of itself)


def config(run: Run, task: str):
    """The frozen config of one data set."""
    return train.setup_cfg(train.build_parser().parse_intermixed_args([*run.base_argv(task, run.out), *run.pairs]))


class StreamEvaluation:
    """Evaluates models on the test sets of a run's tasks, in its order."""

    def __init__(self, run: Run, memo: dict | None = None):
        self.run, self.memo = run, {} if memo is None else memo  # of `input_digests`
        self.cfgs = [config(run, task) for task in run.tasks]
        self.cfg = self.cfgs[0]
        self.settings = self.cfg.TRAINER.CONDU

    @cached_property
    def clip(self):
        clip = build_clip_from_cfg(self.cfg, cached=True)
        check_input(self.cfg, clip)
        return clip

    @cached_property
    def space(self):
        space = build_space(self.cfg, copy.deepcopy(self.clip), dict(self.clip.module.named_parameters()))
        space.release()
        return space

    @cached_property
    def evaluator(self) -> Evaluator:
        autocast = Precision(self.settings.PREC, self.clip.device).autocast
        return Evaluator(self.clip, ExpertCache(self.clip, self.settings.RESIDENT), autocast, self.settings.CHUNK)

    @cached_property
    def datasets(self) -> list:
        return [build_dataset(cfg) for cfg in self.cfgs]

    @cached_property
    def tests(self) -> list[TestSet]:
        """Of TEST.SPLIT."""
        sets = zip(self.cfgs, self.datasets, strict=True)
        parts = ((cfg, d, d.val if cfg.TEST.SPLIT == "val" else d.test) for cfg, d in sets)
        return [TestSet(task_of(d), d.classnames, prompts_of(d), ordered_loader(cfg, part)) for cfg, d, part in parts]

    @property
    def names(self) -> list[str]:
        """Task names in the order of learning; draws the images of the toy world where they are missing."""
        return [task_of(dataset) for dataset in self.datasets]

    @property
    def identity(self) -> dict:
        """What all sessions of the run's stream share."""
        backbone = {"name": self.clip.name, "digest": self.clip.digest}
        return {"backbone": backbone, "space": self.space.metadata(), "scale": self.settings.SCALE}

    def snapshots(self) -> list[Snapshot]:
        """After each of the T sessions. UserError if one is not there, or is of another order, backbone, space or
        scale."""
        folder, names = self.run.stream, self.names
        if missing := sorted(set(range(len(names))) - set(sessions(folder))):
            lacks = ", ".join(f"session {index} ({names[index]})" for index in missing)
            raise MissingFile(f"{folder} lacks {lacks}; make it with:  {training_line(self.run)}")
        streams = [Stream.load(folder, session, **self.identity) for session in range(len(names))]
        if streams[-1].names() != names:
            raise UserError(f"{folder} learned {', '.join(streams[-1].names())}; expected {', '.join(names)}")
        return [snapshot_of(stream, self.space) for stream in streams]

    def rules(self) -> dict[str, Vote]:
        """The presets, and the config's own vote if it is none of them."""
        rule = vote_rule(self.settings.VOTE)
        return PRESETS if rule in PRESETS.values() else {OWN: rule, **PRESETS}

    @cached_property
    def recipe(self) -> dict:
        """The keys that results follow from; how a model is evaluated, each result says by itself."""
        return {key: value for key, value in recipe(self.cfg, "eval").items() if role(key) != "evaluation"}

    @cached_property
    def inputs(self) -> dict[str, str]:
        """{what: digest} of what results follow from: the trained stream and each task's data."""
        there = sessions(self.run.stream)
        digests = {"stream": session_digest(self.run.stream, there[-1])} if there else {}
        for task, cfg in zip(self.run.tasks, self.cfgs, strict=True):
            digests |= {f"{key} of {task}": value for key, value in input_digests(cfg, "eval", memo=self.memo).items()}
        return digests

    @cached_property
    def experts(self) -> dict[str, tuple[dict, Tensor]]:
        """{task: (delta, prototypes (C, D))}, in the order of the run. UserError if one was not kept."""
        store = ExpertStore(self.run.experts)
        return {name: store.load(name)[:2] for name in self.names}

    def differs(self, rows: Rows) -> list[str]:
        """A line on each finished result that was made otherwise than one with these facts would be."""
        lines = []
        for folder, facts in rows.values():
            recorded = read(folder)[0]
            said = changed(recorded, {key: value for key, value in facts.items() if key in ("vote", "scale", "order")})
            if "inputs" in recorded:  # older ones do not say
                said += changed(recorded["recipe"], self.recipe) + changed(recorded["inputs"], self.inputs)
            lines += [f"{folder}: {'; '.join(said)}"] if said else []
        return lines

    def results(self, rows: Rows, measure: Callable) -> dict:
        """{key: AccuracyMatrix}: read where all are finished, else what `measure()` gives, in the rows' order, recorded
        with the facts of its row. Several processes measure together.

        UserError, unless run.overwrite, for a result that was made otherwise.
        """
        if (lines := self.differs(rows)) and not self.run.overwrite:
            raise UserError(f"{'. '.join(lines)}. --overwrite evaluates again, another --out keeps both")
        matrices = {key: read(folder)[1] for key, (folder, _) in rows.items()}
        if broadcast(None not in matrices.values() and not lines):
            return matrices
        started = time.monotonic()
        matrices = dict(zip(rows, measure(), strict=True))
        shared = self.identity | {
            "trainer": "ConDU",
            "protocol": "mtil",
            "order": self.run.label,
            "iterations": self.settings.ITERATIONS,
            "seed": self.run.seed,
            "command": self.run.command,
            "wall_s": time.monotonic() - started,
            "recipe": self.recipe,
            "inputs": self.inputs,
        }
        if sessions(self.run.stream):
            shared |= Stream.load(self.run.stream).trained_facts()
        for key, (folder, facts) in rows.items():
            write_matrix(folder, matrices[key], shared | facts, self.clip.device)
        return matrices


def training_line(run: Run) -> str:
    """The command that trains a stream."""
    script = "MTIL_LoRA" if "lora" in run.cfg else "MTIL_FT"
    return f"CFG={run.cfg} SEED={run.seed} bash scripts/condu/{script}.sh {run.order}"


def vote_facts(name: str, rule: Vote) -> dict:
    """What results.json says of a vote."""
    return {"vote": {"name": name, **asdict(rule)}}


def read(folder: Path) -> tuple[dict, AccuracyMatrix | None]:
    """results.json of a matrix, and the matrix; ({}, None) where none can be read, so that it is made again."""
    results = finished(folder)
    try:
        return results, AccuracyMatrix.from_json(results.get("matrix"))
    except (ValueError, TypeError):
        return {}, None


def evaluate_stream(bench: StreamEvaluation, out: str, agnostic: bool) -> Matrices:
    """Evaluate every session by every vote, and print it; what is finished is read, not repeated.

    Several processes look at a share of the images each; the main one prints and writes.

    Writes `out`_<vote>/results.json, task-agnostic `out`_<labels>_<vote>/results.json.
    UserError: no such stream, or sessions are missing.
    """
    rules = bench.rules()
    rows = rows_of(rules, out, agnostic)

    def measure() -> list[AccuracyMatrix]:
        """One sweep for all."""
        matrices, known = bench.evaluator.sweep(bench.snapshots(), bench.tests, rules, agnostic)
        for _, facts in rows.values() if agnostic else ():
            facts["known"] = known
        return [matrices[key] for key in rows]

    matrices = bench.results(rows, measure)
    if is_main():
        records = load_results(*(folder for folder, _ in rows.values()))
        print(mtil_report(records, AGNOSTIC if agnostic else MTIL, METHODS).text())
    return matrices


def rows_of(rules: Mapping[str, Vote], out: str, agnostic: bool) -> dict[tuple[str, str | None], tuple[Path, dict]]:
    """What an evaluation of a stream leaves, by (vote, label space)."""
    protocol = AGNOSTIC if agnostic else MTIL
    keys = [(rule, labels) for labels in (LABELS if agnostic else (None,)) for rule in rules]
    return {
        (rule, labels): (
            Path("_".join(filter(None, (out, labels, rule)))),
            {"protocol": protocol, "labels": labels} | vote_facts(rule, rules[rule]),
        )
        for rule, labels in keys
    }
