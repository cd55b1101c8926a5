"""What every evaluation of a stream shares in one process: the pretrained CLIP, test sets, an evaluator, its records.

Letters: T tasks of the order.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from torch import Tensor

from condu.evaluation import Evaluator
from condu.expert_cache import ExpertCache
from condu.metrics import AccuracyMatrix
from condu.results import write_matrix
from condu.settings import vote_rule
from condu.snapshot import Snapshot, TestSet, prompts_of, snapshot_of, task_of
from condu.store import ExpertStore
from condu.stream import Stream, session_digest, sessions
from condu.tuning import build_space
from condu.voting import PRESETS, Vote
from dassl.clip import build_clip_from_cfg, check_input
from dassl.data import build_data_loader
from dassl.data.data_manager import build_dataset
from dassl.data.transforms import build_transform
from dassl.engine.precision import Precision
from dassl.engine.recipe import changed, finished, input_digests, recipe, role
from dassl.utils import MissingFile, UserError
from dassl.utils.distributed import broadcast
from scripts.condu.sessions import Run

OWN = "own"  # name of a vote that is none of the presets


def config(run: Run, task: str):
    """The frozen config of one data set."""
    import train

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
        own = self.cfg.TRAINER.CONDU
        slots = ExpertCache(self.clip, capacity=own.RESIDENT)
        return Evaluator(self.clip, slots, autocast=self.autocast, chunk=own.CHUNK)

    @cached_property
    def datasets(self) -> list:
        return [build_dataset(cfg) for cfg in self.cfgs]

    @cached_property
    def tests(self) -> list[TestSet]:
        """Of TEST.SPLIT."""
        sets = zip(self.cfgs, self.datasets, strict=True)
        parts = ((cfg, d, d.val if cfg.TEST.SPLIT == "val" else d.test) for cfg, d in sets)
        return [TestSet(task_of(d), d.classnames, prompts_of(d), self.loader(cfg, part)) for cfg, d, part in parts]

    @property
    def names(self) -> list[str]:
        """Task names in the order of learning."""
        return [task_of(dataset) for dataset in self.datasets]

    @property
    def backbone(self) -> dict:
        return {"name": self.clip.name, "digest": self.clip.digest}

    def loader(self, cfg, items):
        """Pictures under the test transform, in their order."""
        transform = build_transform(cfg, is_train=False)
        return build_data_loader(
            cfg, data_source=items, batch_size=cfg.DATALOADER.TEST.BATCH_SIZE, tfm=transform, is_train=False
        )

    def stream(self, session: int | None = None) -> Stream:
        """The run's stream after a session. UserError for that of another backbone, space or scale."""
        asked = {"backbone": self.backbone, "space": self.space.metadata(), "scale": self.cfg.TRAINER.CONDU.SCALE}
        return Stream.load(self.run.stream, session, **asked)

    def snapshots(self) -> list[Snapshot]:
        """After each of the T sessions. UserError if some are not there, or are those of another order."""
        folder, size = self.run.stream, len(self.names)
        if not sessions(folder):
            raise MissingFile(f"no stream in {folder}; make it with:  {training_line(self.run)}")
        missing = sorted(set(range(size)) - set(sessions(folder)))
        if missing:
            names = ", ".join(f"{index} ({self.names[index]})" for index in missing)
            raise UserError(f"{folder} lacks session {names}; make it with:  {training_line(self.run)}")
        streams = [self.stream(session) for session in range(size)]
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
        found = {"stream": session_digest(self.run.stream, there[-1])} if there else {}
        for task, cfg in zip(self.run.tasks, self.cfgs, strict=True):
            found |= {f"{key} of {task}": value for key, value in input_digests(cfg, "eval", memo=self.memo).items()}
        return found

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
        found = {key: read(folder)[1] for key, folder in folders.items()}
        if broadcast(None not in found.values() and not said):
            return found
        started = time.monotonic()
        matrices = dict(zip(folders, measure(), strict=True))
        for key, matrix in matrices.items():
            self.record(folders[key], matrix, started, **facts[key])
        return matrices

    def record(self, folder: Path, matrix: AccuracyMatrix, started: float, **facts) -> None:
        """results.json of a matrix. facts: trainer, protocol, ... override what the config and the stream say."""
        own = {
            "trainer": "ConDU",
            "protocol": "mtil",
            "order": self.run.label,
            "scale": self.cfg.TRAINER.CONDU.SCALE,
            "space": self.space.metadata(),
            "iterations": self.cfg.TRAINER.CONDU.ITERATIONS,
            "seed": self.run.seed,
            "backbone": self.backbone,
            "wall_s": time.monotonic() - started,
            "recipe": self.recipe,
            "inputs": self.inputs,
        }
        write_matrix(str(folder), matrix, own | self.trained | facts, self.clip.device)


def load_experts(store: ExpertStore, names: Sequence[str]) -> dict[str, tuple[dict, Tensor]]:
    """{task: (delta, prototypes)} of these tasks. UserError for one that is not there."""
    found = {name: store.load(name) for name in names}
    if missing := [name for name, expert in found.items() if expert is None]:
        raise UserError(f"{store.folder} has no expert of {', '.join(missing)}; train the stream with --keep-experts")
    return {name: (delta, prototypes) for name, (delta, prototypes, _) in found.items()}


def training_line(run: Run) -> str:
    """The command that trains a stream."""
    script = {True: "MTIL_LoRA", False: "MTIL_FT"}["lora" in run.cfg]
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
