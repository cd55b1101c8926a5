"""Evaluation of a trained stream: what a process shares for it (the pretrained CLIP, test sets, an evaluator, records),
all sessions in one pass over the test images, and their tables. Letters: T tasks of the order.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
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
from dassl.report.table import MISSING, Table
from dassl.utils import MissingFile, UserError
from dassl.utils.distributed import broadcast, is_main
from scripts.condu.sessions import Run

OWN = "own"  # name of a vote that is none of the presets
Matrices = dict[tuple[str, str | None], AccuracyMatrix]  # (vote, label space) -> matrix; label space None: task known


def config(run: Run, task: str):
    """The frozen config of one data set."""
    return train.setup_cfg(train.build_parser().parse_intermixed_args([*run.base_argv(task, run.out), *run.pairs]))


class StreamEvaluation:
    """Evaluates models on the test sets of a run's tasks, in its order."""

    def __init__(self, run: Run, memo: dict | None = None):
        self.run, self.memo = run, {} if memo is None else memo  # of `input_digests`
        self.cfgs = [config(run, task) for task in run.tasks]
        self.cfg = self.cfgs[0]

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

    @property
    def autocast(self):
        return Precision(self.cfg.TRAINER.CONDU.PREC, self.clip.device).autocast

    @cached_property
    def evaluator(self) -> Evaluator:
        node = self.cfg.TRAINER.CONDU
        return Evaluator(self.clip, ExpertCache(self.clip, node.RESIDENT), autocast=self.autocast, chunk=node.CHUNK)

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
        """Task names in the order of learning."""
        return [task_of(dataset) for dataset in self.datasets]

    @property
    def backbone(self) -> dict:
        return {"name": self.clip.name, "digest": self.clip.digest}

    @property
    def identity(self) -> dict:
        """What all sessions of the run's stream share."""
        return {"backbone": self.backbone, "space": self.space.metadata(), "scale": self.cfg.TRAINER.CONDU.SCALE}

    def snapshots(self) -> list[Snapshot]:
        """After each of the T sessions. UserError if some are not there, or are those of another order, backbone, space
        or scale."""
        folder, size = self.run.stream, len(self.names)
        if not sessions(folder):
            raise MissingFile(f"no stream in {folder}; make it with:  {training_line(self.run)}")
        missing = sorted(set(range(size)) - set(sessions(folder)))
        if missing:
            names = ", ".join(f"{index} ({self.names[index]})" for index in missing)
            raise UserError(f"{folder} lacks session {names}; make it with:  {training_line(self.run)}")
        streams = [Stream.load(folder, session, **self.identity) for session in range(size)]
        if streams[-1].names() != self.names:
            theirs = ", ".join(streams[-1].names())
            raise UserError(f"{folder} learned {theirs}; expected {', '.join(self.names)}")
        return [snapshot_of(stream, self.space) for stream in streams]

    def rules(self) -> dict[str, Vote]:
        """The presets, and the config's own vote if it is none of them."""
        rule = vote_rule(self.cfg.TRAINER.CONDU.VOTE)
        return PRESETS if rule in PRESETS.values() else {OWN: rule, **PRESETS}

    @cached_property
    def trained(self) -> dict:
        """What results.json says of the stream that is evaluated."""
        return Stream.load(self.run.stream).trained_facts() if sessions(self.run.stream) else {}

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

    def differs(self, folder: Path, facts: Mapping) -> list[str]:
        """Lines on what a finished result has otherwise than one with these facts would; [] where there is none."""
        if not (recorded := read(folder)[0]):
            return []
        lines = changed(recorded, {key: facts[key] for key in ("vote", "scale", "order") if key in facts})
        if "inputs" in recorded:  # older ones do not say
            lines += changed(recorded["recipe"], self.recipe) + changed(recorded["inputs"], self.inputs)
        return lines

    @cached_property
    def experts(self) -> dict[str, tuple[dict, Tensor]]:
        """{task: (delta, prototypes (C, D))}, in the order of the run. UserError if one was not kept."""
        return load_experts(ExpertStore(self.run.experts), self.names)

    def results(self, folders: Mapping, facts: Mapping, measure: Callable) -> dict:
        """{key: AccuracyMatrix} of folders by key: read where all are finished, else what `measure()` gives, in the
        keys' order, recorded with the facts of its key. Several processes measure together.

        UserError, unless run.overwrite, for a result that was made otherwise.
        """
        said = [f"{f}: {'; '.join(lines)}" for key, f in folders.items() if (lines := self.differs(f, facts[key]))]
        if said and not self.run.overwrite:
            raise UserError(f"{'. '.join(said)}. --overwrite evaluates again, another --out keeps both")
        finished_ones = {key: read(folder)[1] for key, folder in folders.items()}
        if broadcast(None not in finished_ones.values() and not said):
            return finished_ones
        started = time.monotonic()
        matrices = dict(zip(folders, measure(), strict=True))
        shared = self.identity | {
            "trainer": "ConDU",
            "protocol": "mtil",
            "order": self.run.label,
            "iterations": self.cfg.TRAINER.CONDU.ITERATIONS,
            "seed": self.run.seed,
            "wall_s": time.monotonic() - started,
            "recipe": self.recipe,
            "inputs": self.inputs,
        }
        for key, matrix in matrices.items():
            write_matrix(folders[key], matrix, shared | self.trained | facts[key], self.clip.device)
        return matrices


def load_experts(store: ExpertStore, names: Sequence[str]) -> dict[str, tuple[dict, Tensor]]:
    """{task: (delta, prototypes)} of these tasks. UserError for one that is not there."""
    experts = {name: store.load(name) for name in names}
    if missing := [name for name, expert in experts.items() if expert is None]:
        raise UserError(f"{store.folder} has no expert of {', '.join(missing)}; train the stream with --keep-experts")
    return {name: (delta, prototypes) for name, (delta, prototypes, _) in experts.items()}


def training_line(run: Run) -> str:
    """The command that trains a stream."""
    script = "MTIL_LoRA" if "lora" in run.cfg else "MTIL_FT"
    return f"CFG={run.cfg} SEED={run.seed} bash scripts/condu/{script}.sh {run.order}"


def vote_facts(name: str, rule: Vote) -> dict:
    """What results.json says of a vote."""
    return {"name": name, **asdict(rule)}


def task_names(bench: StreamEvaluation) -> list[str]:
    """In the order of learning; draws the images of the toy world where they are missing."""
    return bench.names


def read(folder: Path) -> tuple[dict, AccuracyMatrix | None]:
    """results.json of a matrix, and the matrix; ({}, None) where none can be read, so that it is made again."""
    results = finished(folder)
    try:
        return results, AccuracyMatrix.from_json(results.get("matrix"))
    except (ValueError, TypeError):
        return {}, None


def evaluate_stream(bench: StreamEvaluation, out: str, agnostic: bool, command: str = "") -> Matrices:
    """Evaluate every session by every vote, and print it; what is finished is read, not repeated.

    Several processes look at a share of the images each; the main one prints and writes.

    Writes `out`_<vote>/results.json, task-agnostic `out`_<labels>_<vote>/results.json.
    UserError: no such stream, or sessions are missing.
    """
    rules = bench.rules()
    folders, facts = asked(rules, out, agnostic, command)

    def measure() -> list[AccuracyMatrix]:
        """One sweep for all."""
        matrices, known = bench.evaluator.sweep(bench.snapshots(), bench.tests, rules, agnostic, log=True)
        for said in facts.values() if agnostic else ():
            said["known"] = known
        return [matrices[key] for key in facts]

    matrices = bench.results(folders, facts, measure)
    if is_main():
        named = {f"vote {rule}" + (f", labels {labels}" if labels else ""): (rule, labels) for rule, labels in matrices}
        tables = [matrix_table(matrices[key], f"{name}: {folders[key]}") for name, key in named.items()]
        title = f"{bench.run.cfg}, order {bench.run.label}, seed {bench.run.seed}"
        tables.append(summary_table({name: matrices[key] for name, key in named.items()}, title))
        print(*(f"\n{table.text()}" for table in tables), sep="\n")
    return matrices


def asked(rules: Mapping[str, Vote], out: str, agnostic: bool, command: str = "") -> tuple[dict, dict]:
    """{(vote, label space): folder}, and what the results there say of themselves."""
    facts, protocol = {}, "mtil_agnostic" if agnostic else "mtil"
    for labels in LABELS if agnostic else (None,):
        for rule in rules:
            vote = vote_facts(rule, rules[rule])
            facts[rule, labels] = {"protocol": protocol, "labels": labels, "vote": vote, "command": command}
    return {key: Path("_".join([out, *filter(None, reversed(key))])) for key in facts}, facts


def number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def summary_table(matrices: Mapping[str, AccuracyMatrix], title: str) -> Table:
    """Transfer, Average and Last of each."""
    rows = [[name, *map(number, matrix.summary().values())] for name, matrix in matrices.items()]
    return Table(title, ["", "Transfer", "Average", "Last"], rows)


def matrix_table(matrix: AccuracyMatrix, title: str) -> Table:
    """A row after each task, a column for each test set."""
    rows = [[name, *map(number, cells)] for name, cells in zip(matrix.tasks, matrix.accuracy.tolist(), strict=True)]
    return Table(title, ["after", *matrix.tasks], rows)
