"""The parents of a merge: weights from a run folder, a file or a peft folder, and what is known of their origin."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY, build_trainer, load_config, read_run_cfg, trainer_class
from dassl.engine.checkpoint import find_model
from dassl.engine.recipe import check_written, unfinished
from dassl.engine.results import run_classes, run_facts, run_file
from dassl.engine.state import rng_state, set_rng_state
from dassl.merging.lora import ranks
from dassl.merging.records import ZERO_SHOT, ZEROS
from dassl.utils import (
    MissingFile,
    UserError,
    brief,
    check_weights,
    drop_token_buffers,
    get_logger,
    load_weights,
    read_json,
    set_random_seed,
    sha256_file,
)
from dassl.utils.moved import old_names
from mergetune.stage1 import check_backbone, used_keys

log = get_logger()

# what results.json and merge.json say of that run alone, and not of its weights
OF_THE_RUN = {"format", "kind", "metrics", "correct", "total", "command", "wall_s", "peak_mb", "versions", "device"}
OF_THE_RUN |= {"weights", "inputs", "asked", "unfinished"}
OF_THE_RUN |= {"merge", "row", "method", "title", "values", "base", "merge_space", "parents", "tried"}
SHOWN = ("trainer", "preset", "dataset", "subset", "seed")  # in merge.json's list of parents
MOST_ALPHA = 1_000_000  # of LoRA's scaling and ranks: beyond it products are infinite
SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
LAMBDA = re.compile(r".*_lambda_(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)(?:\.pth|\.pt|\.pth\.tar|\.safetensors)")
PEFT_CONFIG, PEFT_FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


@dataclass
class Source:
    """Weights to merge, or a word that stands for some, which has no file. run: the run folder that they come from, if
    it has a config; moved: `root` and `pairs` of `merge.merge_run`."""

    spec: str
    file: Path | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    run: Path | None = None
    peft: dict = field(default_factory=dict)  # adapter_config.json
    facts: dict = field(default_factory=dict)
    epoch: int | None = None
    unfinished: str = ""  # how far its training is, if that has not ended
    moved: dict = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Of its file; a word is itself."""
        return sha256_file(str(self.file)) if self.file else self.spec

    def record(self) -> dict:
        """What merge.json says of it."""
        if self.file is None:
            return {"path": self.spec}
        record = {"path": str(self.file.resolve()), "sha256": self.sha256, "epoch": self.epoch}
        record |= {"unfinished": self.unfinished} if self.unfinished else {}
        return record | {name: self.facts[name] for name in SHOWN if name in self.facts}

    def scaling(self) -> dict[str, float]:
        """LoRA's factor of each module: lora_alpha / r, or / sqrt(r); 1 where no adapter_config.json says."""
        usual, root = self.peft.get("lora_alpha"), math.sqrt if self.peft.get("use_rslora") else float
        return {
            module: _of_module(self.peft, "alpha_pattern", module, rank if usual is None else usual) / root(rank)
            for module, rank in ranks(self.state).items()
        }

    @cached_property
    def cfg(self):
        """The config of its run. UserError if it comes from none."""
        if self.run is None:
            raise UserError(
                f"{ZERO_SHOT} and validation images are those of a run, and no parent is a run folder: "
                f"add one, or give a file or {ZEROS} as the base"
            )
        changes = {"RESUME_COOP": "", "TEST.COMPUTE_CMAT": False, "VERBOSE": False}
        return load_config(self.run, changes, **self.moved)

    def build(self):
        """The trainer of its run, with the weights that the run's seed draws."""
        cfg, before = self.cfg, rng_state()
        set_random_seed(max(cfg.SEED, 0))
        trainer = build_trainer(cfg)
        set_rng_state(before)
        check_backbone(self.file, trainer.metadata())
        return trainer

    @cached_property
    def trainer(self):
        """The trainer of its run, with these weights."""
        trainer = self.build()
        trainer._load_weights(trainer.model_name, str(self.file), self.state)
        return trainer

    def untrained(self) -> dict[str, Tensor]:
        """The weights that its training started from: its seed gives them again."""
        trainer = self.build()
        if trainer.cfg.SEED < 0:
            raise UserError(f"{self.run} trained without a seed, so nobody knows where it started")
        return trainer.drop_keys({name: value.detach().cpu() for name, value in trainer.model.state_dict().items()})

    def validate(self, state: dict[str, Tensor]) -> float:
        """Accuracy in percent of other weights on the validation images of its run."""
        if not self.trainer.has_validation():
            raise UserError(f"{self.run} has no validation images, so its data cannot choose between values")
        self.trainer._load_weights(self.trainer.model_name, str(self.file), state)
        return self.trainer.test("val")


def _of_module(peft: dict, pattern: str, module: str, default: float) -> float:
    """What an entry of adapter_config.json, {regular expression: value}, has for a module."""
    values = peft.get(pattern) or {}
    return next((value for key, value in values.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def read_source(spec: str | Path, words: Sequence[str] = ()) -> Source:
    """A parent from a run folder (its best checkpoint if kept, else its last), a file, a peft folder, or a word."""
    if str(spec) in words:
        return Source(str(spec))
    path = Path(spec)
    if not path.exists():
        what = f"a run folder, a file of weights, a peft folder, or the word {ZERO_SHOT}"
        raise MissingFile(f"No parent at {path}: expected {what}")
    if path.is_dir() and (path / PEFT_CONFIG).is_file():
        return _read_peft(str(spec), path)
    config = run_file(path, "config.yaml")
    trainer = trainer_class(read_run_cfg(config.parent).TRAINER.NAME) if config else None
    file = Path(find_model(str(path), trainer.model_name if trainer else ""))
    state, epoch = read_state(file, trainer)
    run_classes(file)  # refuses those of another run
    known = run_facts(file.absolute())
    if line := unfinished(file, epoch):
        log.warning(f"{spec}: {line}")
    facts = {name: value for name, value in known.items() if name not in OF_THE_RUN}
    return Source(str(spec), file, state, config and config.parent, facts=facts, epoch=epoch, unfinished=line)


def _read_peft(spec: str, folder: Path) -> Source:
    config, peft = folder / PEFT_CONFIG, read_json(folder / PEFT_CONFIG)
    if not isinstance(peft, dict) or peft.get("peft_type", "LORA") != "LORA" or peft.get("use_dora"):
        raise UserError(f"{config} describes no plain LoRA, and only that can be merged")
    file = next((folder / name for name in PEFT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise MissingFile(f"{folder} has an {PEFT_CONFIG} but no {' or '.join(PEFT_FILES)}")
    for name in (file, config):
        check_written(name)
    _check_peft(peft, config)
    state, epoch = read_state(file)
    for module, rank in ranks(state).items():
        if (expected := _of_module(peft, "rank_pattern", module, peft.get("r", rank))) != rank:
            raise UserError(f"{config} gives {module} the rank {expected}, but its factors have {rank}")
    name = peft.get("base_model_name_or_path")
    return Source(spec, file, state, peft=peft, facts={"backbone": {"name": name}} if name else {}, epoch=epoch)


def _check_peft(peft: dict, where: Path) -> None:
    """UserError for a rank or a scaling that is no number, or patterns of modules that cannot be read."""
    values = {name: peft[name] for name in ("r", "lora_alpha") if name in peft}
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = {} if peft.get(name) is None else peft[name]
        try:
            values |= {f"{name} {re.compile(key).pattern}": value for key, value in pattern.items()}
        except (AttributeError, re.error) as error:
            raise UserError(f"{where}: {name} is {brief(pattern)}, expected {{module: number}} ({error})") from None
    for name, value in values.items():
        kind, what = (int, "whole number") if name.startswith("r") else (int | float, "number")
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= MOST_ALPHA:
            raise UserError(f"{where}: {name} is {brief(value)}, expected a {what} above 0 and up to {MOST_ALPHA}")


def read_state(file: Path, trainer: type | None = None) -> tuple[dict[str, Tensor], int | None]:
    """The weights of a file, and the epochs they were trained for if it says; never runs code that a file brings.

    Without the buffers that prompt learners make of the class names, and what their method never used. trainer: whose
    run the file is of; one that is not MERGETUNE's knows its own keys.
    """
    state, epoch, _ = load_weights(file)
    if trainer is None or hasattr(trainer, "bound_to_classes"):
        state = used_keys(file, state)
    state = drop_token_buffers(state)
    check_weights(file, state)
    return {name: value.detach() for name, value in state.items()}, epoch


def bound_to_classes(source: Source) -> list[str]:
    """Names of the weights that hold one entry a class: class-specific contexts, and heads."""
    trainer = source.facts.get("trainer")
    head = getattr(TRAINER_REGISTRY.get(trainer), "head_key", "") if trainer in TRAINER_REGISTRY else ""
    contexts = [name for name, value in source.state.items() if name.split(".")[-1] == "ctx" and value.dim() == 3]
    return contexts + [name for name in source.state if name == head]


def check_origin(sources: Sequence[Source]) -> None:
    """Refuse sources of another backbone, activation, preprocessing, or class list where weights hold classes."""
    backbones = [(source.spec, source.facts.get("backbone", {})) for source in sources]
    for fact in ("digest", "name", "activation", "preprocess"):
        known = [
            (value, f"{spec} has {backbone.get('name')} ({value[:12]})" if fact == "digest" else f"{spec} has {value}")
            for spec, backbone in backbones
            if (value := backbone.get(fact)) is not None and (fact != "name" or not backbone.get("digest"))
        ]
        for value, words in known[1:]:
            if value != known[0][0]:
                what = "backbone" if fact in ("digest", "name") else fact
                raise UserError(f"Parents of another {what} cannot be merged: {known[0][1]} and {words}")
    named = [(source, source.facts.get("classes", {})) for source in sources]
    named = [(source, classes) for source, classes in named if classes.get("digest")]
    for source, classes in named[1:]:
        bound = bound_to_classes(source)
        if bound and classes["digest"] != named[0][1]["digest"]:
            both = (named[0], (source, classes))
            both = [f"{s.spec} has {c['count']} ({c['first']} .. {c['last']})" for s, c in both]
            what = f"Parents of other classes cannot be merged, for {bound[0]} holds one entry a class"
            raise UserError(f"{what}: {' and '.join(both)}")


# Weights that were merged elsewhere, as files the released MERGETUNE evaluates: PREFIX_ties_lambda_VALUE.pth


def find_merged(folder: str, method: str, *, value: float | None = None, prefix: str = "", name: str = "") -> Path:
    """The one file of merged weights in a folder that is meant.

    method: ties (names with `_lambda_VALUE`) or dare (names with `dare`). value: of lambda, compared as a number.
    prefix: how the name begins. name: the file itself, its suffix optional, or a folder below.
    MissingFile where nothing fits, UserError where several do: both say what is there.
    """
    place = Path(folder)
    if name and (place / name).is_dir():
        place, name = place / name, ""
    there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    files = [file for file in there if file.startswith(prefix) and file.endswith(SUFFIXES)]
    files = [file for file in files if (method == "dare") == ("dare" in file.lower())]
    if method == "ties" or value is not None:
        files = [file for file in files if _lambda(file) is not None]
    wanted = f"{prefix or 'PREFIX'}_ties_lambda_VALUE.pth" if method == "ties" else f"{prefix}*dare*.pth"
    if name:
        files, wanted, value = [file for suffix in ("", *SUFFIXES) if (file := name + suffix) in there][:1], name, None
    if not files:
        raise MissingFile(f"No merged weights {wanted} in {place} (there: {', '.join(there) or 'nothing'})")
    chosen = files if value is None else [file for file in files if _lambda(file) == value]
    if not chosen:
        known = ", ".join(f"{v:g}" for v in sorted({_lambda(file) for file in files}))
        raise MissingFile(f"No merged weights of lambda {value:g} in {place}; --lambda-val can be {known}")
    if len(chosen) > 1:
        values = {_lambda(file) for file in chosen}
        flag = "--lambda-val" if len(values - {None}) == len(chosen) else "--model-prefix or --model-name"
        raise UserError(f"{place} holds several merged weights ({', '.join(chosen)}): choose with {flag}")
    return place / chosen[0]


def _lambda(file: str) -> float | None:
    """The number in a file's name."""
    match = LAMBDA.fullmatch(file)
    return float(match[1]) if match else None


def merged_row(file: Path, method: str) -> dict:
    """What the evaluation of such a file says of its weights."""
    value = _lambda(file.name)
    title = {"ties": "TIES", "dare": "DARE"}[method] + ("" if value is None else f" (lambda {value:g})")
    merged = {"method": method, "values": {} if value is None else {"lambda": value}, "file": file.name}
    merged["sha256"] = sha256_file(str(file))
    return {"preset": title, "merge": merged, "alpha_chosen_on": "given", "data_seen": "unknown: merged elsewhere"}


__getattr__ = old_names(__name__)
