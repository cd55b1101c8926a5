"""One merge: its sources brought into one space, the search for the best values, and the folder that comes of it."""

import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from dassl.engine import trainer_class
from dassl.engine.checkpoint import BEST, CONFIG, MERGE, RESULTS, RESUME, finished
from dassl.engine.launch import AlreadyFinished
from dassl.engine.recipe import build_lists, changed, data_digest
from dassl.engine.results import CLASSES
from dassl.merging import lora
from dassl.merging.methods import check_alike, is_weight, merge
from dassl.merging.records import METHODS, SPACES, START, ZERO_SHOT, ZEROS, check_method
from dassl.utils import UserError, atomic_write, check_weights, checkpoint_digest, save_checkpoint, write_json
from dassl.utils.files import begun, drop_begun
from dassl.utils.progress import progress
from mergetune.merge_sources import PEFT_CONFIG, PEFT_FILES, check_origin, read_source

State = dict[str, Tensor]
JOINED = ("source", "source_subset", "data_seen")  # facts of which the merge has all
# what goes of an earlier merge: weights that the new one may not have, and evaluations, which are of those
LEFT = ("*/model*.pth.tar*", "*/checkpoint", "merged.safetensors", *PEFT_FILES, PEFT_CONFIG, CLASSES)
LEFT += (RESULTS, f"eval_*/{RESULTS}")
SWEEP = "sweep.json"  # of an ensemble
FINISHED = {MERGE: "row", SWEEP: "test"}  # a field that it has


class MergeJob:
    """Sources of a merge, read; the arguments are those of `merge.merge_run`. UserError or ValueError for what does not
    fit together.

    Attributes: sources, and base (None where the method needs none); first, the source that lends its config, or the
    first that was read if none has any.
    """

    def __init__(
        self, method: str, parents: Sequence, values: dict, base: str | Path, keep: Sequence[str], merge_space: str,
        rank: int | None, **moved
    ):  # fmt: skip
        how = check_method(method, len(parents), values)
        if merge_space not in SPACES:
            raise UserError(f"merge_space is {merge_space!r}, expected one of {', '.join(SPACES)}")
        self.method, self.usual, self.choices = method, how.values, candidates(values)
        self.space, self.keep, self.rank = merge_space, keep, rank
        self.sources = [read_source(spec, words=(ZERO_SHOT,)) for spec in parents]
        if not any(source.file for source in self.sources):
            raise UserError(f"Nothing to merge: every parent is {ZERO_SHOT}")
        self.base = read_source(base, words=(ZERO_SHOT, START, ZEROS)) if how.needs_base else None
        self.everything = [*self.sources, *([self.base] if self.base else [])]
        self.read = [source for source in self.everything if source.file]
        self.first = next((source for source in self.read if source.run), self.read[0])
        self.first.moved = moved
        self.ranks = lora.ranks(self.first.state)
        check_origin(self.read)
        self.has_lora = any(lora.is_factor(name) for name in self.first.state)
        if merge_space == "product" and not self.has_lora:
            raise UserError(f"merge_space product is for LoRA, and {self.first.spec} has no lora_A and lora_B")
        for other in self.read if merge_space == "factors" else ():
            if other.scaling() != self.first.scaling() and lora.ranks(other.state) == self.ranks:
                raise UserError(
                    f"{self.first.spec} and {other.spec} scale their LoRA updates differently "
                    "(lora_alpha / r), so their factors cannot be merged: use merge_space product"
                )

    @cached_property
    def states(self) -> tuple[list[State], State | None]:
        """Those of the sources and of the base, as they are merged, products of LoRA included."""
        states = []
        for source in self.everything:
            state = source.state if source.file else self.of_word(source.spec)
            if self.space == "product":
                state = lora.products(state, (source if source.file else self.first).scaling())
            states.append(state)
        labels = [source.spec for source in self.sources] + ([f"the base {self.base.spec}"] if self.base else [])
        check_alike(states, labels, self.keep)
        return states[: len(self.sources)], states[-1] if self.base else None

    def of_word(self, word: str) -> State:
        """The weights that a word stands for; what is no weight, or what zero-shot leaves open, is the first's."""
        state = self.first.state
        only_lora = self.first.run is None and state and all(map(lora.is_factor, state))
        if word == ZEROS or word == ZERO_SHOT and only_lora:
            return {name: torch.zeros_like(v) if is_weight(name, v) else v.clone() for name, v in state.items()}
        if word == START:
            weights = {name: value for name, value in self.first.untrained().items() if is_weight(name, value)}
        else:
            try:
                weights = self.first.trainer.zero_shot_weights()
            except UserError as error:
                raise UserError(f"{error}. Task vectors can also start where the training did: base {START}") from error
        return state | {name: value.detach().cpu().to(state[name].dtype) for name, value in weights.items()}

    def asked(self) -> dict:
        """What a finished merge is compared by."""
        sources = [source.sha256 for source in self.sources]
        options = {"merge_space": self.space, "keep": sorted(set(self.keep)), "rank": self.rank}
        options |= {"peft": [source.peft for source in self.read]} if self.first.peft else {}
        if len(self.choices) > 1:
            options["data"] = data_digest(build_lists(self.first.cfg), self.first.cfg.DATASET.NAME)
        base, choices = self.base.sha256 if self.base else None, complete(self.method, self.choices)
        return {"method": self.method, "choices": choices, "parents": sources, "base": base} | options

    def search(self) -> tuple[State, dict, list[dict]]:
        """The merge of the choice with the best validation accuracy, the first of equals -> (state, choice, tried).

        Each entry of what was tried is a choice with its accuracy in percent as `val`; a single choice is not tried.
        """
        best, tried = None, []
        for choice in progress(self.choices, "trying merges"):
            state = merge(self.method, *self.states, keep=self.keep, **choice)
            if len(self.choices) > 1:
                tried.append({**choice, "val": self.first.validate(self.thin(state, None))})
            if best is None or tried[-1]["val"] > best[0]:
                best = tried[-1]["val"] if tried else None, state, choice
        return best[1], best[2], tried

    def thin(self, state: State, rank: int | None) -> State:
        """A merged state with its products as factors again; rank None: the first source's, 0: as it is."""
        return state if self.space == "factors" or rank == 0 else lora.factors(state, rank or self.ranks)

    def write(self, out: Path, state: State, score: float | None) -> dict[str, str]:
        """A run folder, a peft folder, or a file of weights, as the sources are -> {file: digest}."""
        state = {name: value.contiguous() for name, value in self.thin(state, self.rank).items()}
        check_weights("The merge", state)
        if run := self.first.run:
            name = trainer_class(self.first.cfg.TRAINER.NAME).model_name
            checkpoint = {"epoch": self.first.epoch, "optimizer": None, "scheduler": None, "val_result": score}
            save_checkpoint({"state_dict": state, **checkpoint}, str(out / name), model_name=BEST)
            for file in ("config.yaml", CLASSES):
                if (run / file).is_file():
                    with atomic_write(str(out / file)) as target:
                        target.write((run / file).read_bytes())
        else:
            is_peft = self.first.peft and self.rank != 0
            if is_peft:
                peft = self.first.peft
                if self.space == "product":  # its factors have the scaling 1
                    ranks = self.ranks if self.rank is None else {}
                    top = self.rank or max(ranks.values())
                    modules = {name.removeprefix("base_model.model."): r for name, r in ranks.items() if r != top}
                    peft = peft | {"r": top, "lora_alpha": top, "use_rslora": False}
                    peft |= {"rank_pattern": modules, "alpha_pattern": modules}
                write_json(peft, str(out / PEFT_CONFIG))
            with atomic_write(str(out / (PEFT_FILES[0] if is_peft else "merged.safetensors"))) as target:
                target.write(save(state))
        files = [file for file in out.rglob("*") if file.is_file()]
        return {file.relative_to(out).as_posix(): checkpoint_digest(file) for file in files}

    def describe(self, values: dict, tried: list[dict], command: str) -> dict:
        """merge.json: how the weights came about. `row` is what an evaluation of them says in its results.json, the
        facts behind it what a later run asks of their origin, see `stage1.run_fact`.

        tried: the values of a search with their validation accuracy in percent, if there was one.
        """
        shown = {name: value for name, value in values.items() if value is not None}
        options = {"method": self.method, "title": METHODS[self.method].title, "values": shown}
        options |= {"base": self.base.spec} if self.base else {}
        options |= {"merge_space": self.space} if self.has_lora else {}
        facts = self.first.facts
        others = [s.facts.get("trainer", Path(s.spec).name) for s in self.sources if s is not self.first]
        row = {
            "preset": row_name(self.method, shown, others, options.get("base", ZERO_SHOT)),
            "merge": options | {"parents": [s.spec for s in self.sources], "of": facts.get("preset", "")},
            "alpha_chosen_on": "validation" if tried else "given" if shown else None,
        }
        lines = dict.fromkeys(source.unfinished for source in self.read if source.unfinished)
        row |= {"unfinished": "; ".join(lines)} if lines else {}
        row |= {"chosen_on": facts["chosen_on"]} if facts.get("chosen_on") else {}
        joined = {fact: dict.fromkeys(str(s.facts[fact]) for s in self.read if s.facts.get(fact)) for fact in JOINED}
        joined = {fact: " + ".join(values) for fact, values in joined.items()}
        records = [source.record() for source in self.sources]
        record = {"format": 1, **options, "parents": records, "tried": tried, "row": row, "command": command}
        return record | facts | joined


def candidates(values: dict) -> list[dict]:
    """Every choice of values; what is no list stays, and so does one list of weights."""

    def several(name: str, value: object) -> bool:
        is_list = isinstance(value, list | tuple)
        return is_list and (name != "weights" or any(isinstance(entry, list | tuple) for entry in value))

    lists = {name: list(value) if several(name, value) else [value] for name, value in values.items()}
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]


def complete(method: str, choices: Sequence[dict]) -> list[dict]:
    """The choices with the defaults of what they leave open."""
    choices = [{**METHODS[method].values, **choice} for choice in choices]
    return [{name: value for name, value in choice.items() if value is not None} for choice in choices]


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
    try:
        return facts, changed(facts["asked"] if isinstance(facts.get("asked"), dict) else asked_before(facts), asked)
    except (KeyError, TypeError, AttributeError):
        return {}, []


def asked_before(facts: dict) -> dict:
    """What was asked for, as far as a record of an earlier version says."""
    if "alphas" in facts:
        return {"kind": facts["kind"], "alphas": facts["alphas"], "tests": list(facts["test"])}
    tried = [{name: value for name, value in entry.items() if name != "val"} for entry in facts["tried"]]
    sources = [source.get("sha256", source["path"]) for source in facts["parents"]]
    choices = complete(facts["method"], tried or [facts["values"]])
    return {"method": facts["method"], "choices": choices, "parents": sources}


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
        run = any((out / name).exists() for name in (RESULTS, RESUME, "log.txt"))  # else an old version's half merge
        if run or not overwrite:
            ways = "" if run else ", or --overwrite what a killed merge has left"
            raise UserError(f"{out} holds a run that is no merge: choose another folder{ways}")
    facts = already(out, MERGE, asked, overwrite)
    files = facts.get("weights", {}).get("files", {}).items()
    return bool(facts) and all((out / name).is_file() and checkpoint_digest(out / name) == of for name, of in files)
