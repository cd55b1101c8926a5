"""One merge: its sources brought into one space, the search for the best values, and the folder that comes of it."""

import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import build_trainer, load_config, trainer_class
from dassl.engine.checkpoint import BEST, CONFIG, MERGE, RESULTS, finished
from dassl.engine.launch import AlreadyFinished
from dassl.engine.recipe import build_lists, changed, data_digest
from dassl.engine.results import CLASSES
from dassl.engine.state import rng_state, set_rng_state
from dassl.merging import lora
from dassl.merging.methods import check_alike, is_weight, merge
from dassl.merging.records import METHODS, SPACES, START, ZERO_SHOT, ZEROS, check_method
from dassl.utils import UserError, atomic_write, check_availability, checkpoint_digest, set_random_seed, write_json
from dassl.utils.files import begun, drop_begun
from dassl.utils.progress import progress
from dassl.utils.torchtools import check_weights, save_checkpoint
from mergetune.merge_sources import PEFT_CONFIG, PEFT_FILES, check_origin, read_source
from mergetune.stage1 import check_backbone

State = dict[str, Tensor]
JOINED = ("source", "source_subset", "data_seen")  # facts of which the merge has all
# what goes of an earlier merge: weights that the new one may not have, and evaluations, which are of those
LEFT = ("*/model*.pth.tar*", "*/checkpoint", "merged.safetensors", *PEFT_FILES, PEFT_CONFIG, CLASSES)
LEFT += (RESULTS, f"eval_*/{RESULTS}")
SWEEP = "sweep.json"  # of an ensemble
FINISHED = {MERGE: "row", SWEEP: "test"}  # a field that it has


class MergeJob:
    """Sources of a merge, read. UserError for what does not fit together.

    method, parents, values: of METHODS; a list of several values is a search on the validation images of the first run
    (of `weights`, one value). base: where task vectors start. keep: names that are no weights and come from the
    first parent. merge_space: of LoRA, factors or product (see dassl.merging.lora); rank: of the factors made of a
    product, default the first parent's, 0 leaves the product. moved: `root`, where the data sets lie, if they have
    moved, and `pairs`: KEY, VALUE, ... of what else has, such as a teacher.

    Attributes: sources, and base (None where the method needs none); first, the source that lends its config, or the
    first that was read if none has any.
    """

    def __init__(
        self, method: str, parents: Sequence[str | Path], *, base: str | Path = ZERO_SHOT, keep: Sequence[str] = (),
        merge_space: str = "factors", rank: int | None = None, root: str = "", pairs: Sequence[str] = (), **values
    ):  # fmt: skip
        how = check_method(method, len(parents), values)
        check_availability(merge_space, SPACES, "merge_space")
        self.method, self.choices = method, candidates(values)
        self.space, self.keep, self.rank = merge_space, keep, rank
        self.sources = [read_source(spec, words=(ZERO_SHOT,)) for spec in parents]
        self.base = read_source(base, words=(ZERO_SHOT, START, ZEROS)) if how.needs_base else None
        self.read = [source for source in (*self.sources, self.base) if source and source.file]
        if not any(source.file for source in self.sources):
            raise UserError(f"Nothing to merge: every parent is {ZERO_SHOT}")
        check_origin(self.read)
        self.first = next((source for source in self.read if source.run), self.read[0])
        self.moved = {"root": root, "pairs": pairs}
        self.ranks = lora.ranks(self.first.state)
        if merge_space == "product" and not self.ranks:
            raise UserError(f"merge_space product is for LoRA, and {self.first.spec} has no lora_A and lora_B")
        for other in self.read if merge_space == "factors" else ():
            if other.scaling != self.first.scaling and lora.ranks(other.state) == self.ranks:
                raise UserError(
                    f"{self.first.spec} and {other.spec} scale their LoRA updates differently "
                    "(lora_alpha / r), so their factors cannot be merged: use merge_space product"
                )

    @cached_property
    def cfg(self) -> CfgNode:
        """The config of the first run. UserError if there is none."""
        if self.first.run is None:
            what = f"{ZERO_SHOT} and validation images are those of a run, and no parent is a run folder"
            raise UserError(f"{what}: add one, or give a file or {ZEROS} as the base")
        changes = {"RESUME_COOP": "", "TEST.COMPUTE_CMAT": False, "VERBOSE": False}
        return load_config(self.first.run, changes, **self.moved)

    def build(self):
        """The trainer of the first run, with the weights that the run's seed draws."""
        before = rng_state()
        set_random_seed(max(self.cfg.SEED, 0))
        trainer = build_trainer(self.cfg)
        set_rng_state(before)
        check_backbone(self.first.file, trainer.metadata())
        return trainer

    @cached_property
    def trainer(self):
        """The trainer of the first run, with its weights."""
        trainer = self.build()
        trainer._load_weights(trainer.model_name, str(self.first.file), self.first.state)
        return trainer

    @cached_property
    def states(self) -> tuple[list[State], State | None]:
        """Those of the sources and of the base, as they are merged, products of LoRA included."""
        sources = [*self.sources, *([self.base] if self.base else [])]
        states = [source.state if source.file else self.of_word(source.spec) for source in sources]
        if self.space == "product":
            scalings = [source.scaling or self.first.scaling for source in sources]
            states = [lora.products(*pair) for pair in zip(states, scalings, strict=True)]
        labels = [f"the base {source.spec}" if source is self.base else source.spec for source in sources]
        check_alike(states, labels, self.keep)
        return states[: len(self.sources)], states[-1] if self.base else None

    def of_word(self, word: str) -> State:
        """The weights that a word stands for; what is no weight, or what zero-shot leaves open, is the first's."""
        state, run = self.first.state, self.first.run
        if word == ZEROS or word == ZERO_SHOT and run is None and all(map(lora.is_factor, state)):
            return {name: torch.zeros_like(v) if is_weight(name, v) else v.clone() for name, v in state.items()}
        if word == START:
            trainer = self.build()
            if self.cfg.SEED < 0:
                raise UserError(f"{run} trained without a seed, so nobody knows where it started")
            weights = trainer.drop_keys(dict(trainer.model.state_dict()))
            weights = {name: value for name, value in weights.items() if is_weight(name, value)}
        else:
            try:
                weights = self.trainer.zero_shot_weights()
            except UserError as error:
                raise UserError(f"{error}. Task vectors can also start where the training did: base {START}") from error
        return state | {name: value.detach().cpu().to(state[name].dtype) for name, value in weights.items()}

    def asked(self) -> dict:
        """What a finished merge is compared by."""
        asked = {
            "method": self.method,
            "choices": [complete(self.method, choice) for choice in self.choices],
            "parents": [source.sha256 for source in self.sources],
            "base": self.base.sha256 if self.base else None,
            "merge_space": self.space,
            "keep": sorted(set(self.keep)),
            "rank": self.rank,
        }
        asked |= {"peft": [source.peft for source in self.read]} if self.first.peft else {}
        if len(self.choices) > 1:
            asked["data"] = data_digest(build_lists(self.cfg), self.cfg.DATASET.NAME)
        return asked

    def search(self) -> tuple[State, dict, list[dict]]:
        """The merge of the choice with the best validation accuracy, the first of equals -> (state, choice, tried).

        Each entry of what was tried is a choice with its accuracy in percent as `val`; a single choice is not tried.
        """
        tried, best, several = [], None, len(self.choices) > 1
        if several and not self.trainer.has_validation():
            raise UserError(f"{self.first.run} has no validation images, so its data cannot choose between values")
        for choice in progress(self.choices, "trying merges"):
            state = merge(self.method, *self.states, keep=self.keep, **choice)
            if several:
                self.trainer._load_weights(self.trainer.model_name, str(self.first.file), self.thin(state, None))
                tried.append({**choice, "val": self.trainer.test("val")})
            if best is None or tried[-1]["val"] > max(entry["val"] for entry in tried[:-1]):
                best = state, choice
        return *best, tried

    def thin(self, state: State, rank: int | None) -> State:
        """A merged state with its products as factors again; rank None: the first source's, 0: as it is."""
        return state if self.space == "factors" or rank == 0 else lora.factors(state, rank or self.ranks)

    def write(self, out: Path, state: State, score: float | None) -> dict[str, str]:
        """A run folder, a peft folder, or a file of weights, as the sources are -> {file: digest}."""
        state = {name: value.contiguous() for name, value in self.thin(state, self.rank).items()}
        check_weights("The merge", state)
        if run := self.first.run:
            name = trainer_class(self.cfg.TRAINER.NAME).model_name
            checkpoint = {"epoch": self.first.epoch, "optimizer": None, "scheduler": None, "val_result": score}
            save_checkpoint({"state_dict": state, **checkpoint}, str(out / name), model_name=BEST)
            for file in ("config.yaml", CLASSES):
                if (run / file).is_file():
                    with atomic_write(str(out / file)) as target:
                        target.write((run / file).read_bytes())
        else:
            peft = self.first.peft if self.rank != 0 else {}
            if peft and self.space == "product":  # its factors have the scaling 1
                rank = next(iter(lora.ranks(state).values()))
                peft = peft | {"r": rank, "lora_alpha": rank, "use_rslora": False}
            if peft:
                write_json(peft, str(out / PEFT_CONFIG))
            with atomic_write(str(out / (PEFT_FILES[0] if peft else "merged.safetensors"))) as target:
                target.write(save(state))
        files = [file for file in out.rglob("*") if file.is_file()]
        return {file.relative_to(out).as_posix(): checkpoint_digest(file) for file in files}

    def describe(self, choice: dict, tried: list[dict], command: str) -> dict:
        """merge.json: how the weights came about. `row` is what an evaluation of them says in its results.json, the
        facts behind it what a later run asks of their origin, see `stage1.run_fact`.

        choice: the values that were merged with; tried: those of a search with their validation accuracy in percent.
        """
        values, facts = complete(self.method, choice), self.first.facts
        options = {"method": self.method, "title": METHODS[self.method].title, "values": values}
        options |= {"base": self.base.spec} if self.base else {}
        options |= {"merge_space": self.space} if self.ranks else {}
        others = [s.facts.get("trainer", Path(s.spec).name) for s in self.sources if s is not self.first]
        row = {
            "preset": row_name(self.method, values, others, options.get("base", ZERO_SHOT)),
            "merge": options | {"parents": [s.spec for s in self.sources], "of": facts.get("preset", "")},
            "alpha_chosen_on": "validation" if tried else "given" if values else None,
        }
        lines = dict.fromkeys(source.unfinished for source in self.read if source.unfinished)
        row |= {"unfinished": "; ".join(lines)} if lines else {}
        row |= {"chosen_on": facts["chosen_on"]} if facts.get("chosen_on") else {}
        joined = {fact: dict.fromkeys(str(s.facts[fact]) for s in self.read if s.facts.get(fact)) for fact in JOINED}
        record = {"format": 1, **options, "parents": [source.record() for source in self.sources], "tried": tried}
        return record | {"row": row, "command": command} | facts | {fact: " + ".join(v) for fact, v in joined.items()}


def candidates(values: dict) -> list[dict]:
    """Every choice of values; what is no list stays, and so does the list of weights."""
    lists = {name: [value] if name == "weights" or not isinstance(value, list | tuple) else value
             for name, value in values.items()}  # fmt: skip
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]


def complete(method: str, choice: dict) -> dict:
    """A choice with the defaults of what it leaves open."""
    return {name: value for name, value in {**METHODS[method].values, **choice}.items() if value is not None}


def row_name(method: str, values: dict, others: Sequence[str] = (), base: str = ZERO_SHOT) -> str:
    """The method, its values, the parents beside the first, and another base than usual, as a table shows them.

    A seed is no part of it, so that rows are averaged over seeds.
    """
    how, words = METHODS[method], []
    for name, value in values.items():
        if isinstance(value, str):
            words += [value] if value != how.values[name] else []
        elif name == "weights":
            words.append("weights " + " ".join(f"{entry:g}" for entry in value))
        elif name != "seed" and (name != "task" or others):
            words.append(f"{name} {value:g}")
    groups = [", ".join(words), f"with {', '.join(others)}" if others else ""]
    groups.append("" if base == ZERO_SHOT else f"from {Path(base).name}")
    inside = "; ".join(filter(None, groups))
    return f"{how.title} ({inside})" if inside else how.title


# What is finished in a folder: a merge, or an ensemble


def compared(out: Path, marker: str, asked: dict) -> tuple[dict, list[str]]:
    """What merge.json or sweep.json (`marker`) in a folder says, {} where there is none that can be read, and lines on
    what it has otherwise than is asked for."""
    facts = finished(out, marker, FINISHED[marker])
    recorded = facts.get("asked")
    try:
        if facts and not isinstance(recorded, dict):  # an earlier version's, which says a part of it otherwise
            recorded = {name: value for name, value in facts.items() if name not in ("parents", "base")}
            if marker == MERGE:
                tried = [{name: value for name, value in entry.items() if name != "val"} for entry in facts["tried"]]
                recorded["choices"] = [complete(facts["method"], choice) for choice in tried or [facts["values"]]]
        return facts, changed(recorded, asked) if facts else []
    except (KeyError, TypeError, AttributeError):
        return {}, []


def already(out: Path, marker: str, asked: dict, overwrite: bool) -> dict:
    """As `compared`, what is not to be overwritten; for who has locked the folder. AlreadyFinished for another than is
    asked for."""
    facts, lines = ({}, []) if overwrite else compared(out, marker, asked)
    if facts:
        drop_begun(out, marker)
    if lines:
        ways = "--overwrite makes it again, another --out keeps both"
        raise AlreadyFinished(f'"{out}" is finished, of another request: {"; ".join(lines)}. {ways}')
    return facts


def is_finished(out: Path, asked: dict, overwrite: bool) -> bool:
    """Does the folder hold that merge, whole, and not to go? AlreadyFinished for another one, UserError for a run."""
    if not (out / MERGE).is_file() and (out / CONFIG).exists() and not begun(out, MERGE):
        raise UserError(f"{out} holds a run that is no merge: choose another folder")
    facts = already(out, MERGE, asked, overwrite)
    files = facts.get("weights", {}).get("files", {}).items()
    return bool(facts) and all((out / name).is_file() and checkpoint_digest(out / name) == of for name, of in files)
