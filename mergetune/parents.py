"""The parents of a merge: weights from a run folder, a file or a peft folder, and what is known of their origin."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

import mergetune.trainers  # noqa: F401  registers them
from dassl.engine import TRAINER_REGISTRY, read_run_cfg, trainer_class
from dassl.engine.base import find_model
from dassl.engine.results import run_facts
from dassl.utils import (
    MissingFile,
    UserError,
    brief,
    drop_token_buffers,
    is_plain_tensor,
    load_weights,
    read_json,
    sha256_file,
)
from mergetune.lora import ranks
from mergetune.merging import ZERO_SHOT
from mergetune.stage1 import used_keys

# what results.json and merge.json say of that run alone, and not of its weights
OF_THE_RUN = {"format", "kind", "metrics", "correct", "total", "command", "wall_s", "peak_mb", "versions", "device"}
OF_THE_RUN |= {"merge", "row", "method", "title", "values", "base", "merge_space", "parents", "tried"}
SHOWN = ("trainer", "preset", "dataset", "subset", "seed")  # in merge.json's list of parents
MOST_ALPHA = 1_000_000  # of LoRA's scaling and ranks: beyond it products are infinite
PEFT_CONFIG, PEFT_FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


@dataclass
class Parent:
    """Weights to merge. run: the run folder that they come from, if it has a config."""

    spec: str
    file: Path
    state: dict[str, Tensor]
    run: Path | None = None
    peft: dict = field(default_factory=dict)  # adapter_config.json
    facts: dict = field(default_factory=dict)
    epoch: int | None = None

    def record(self) -> dict:
        """What merge.json says of it."""
        own = {"path": str(self.file.resolve()), "sha256": sha256_file(str(self.file)), "epoch": self.epoch}
        return own | {name: self.facts[name] for name in SHOWN if name in self.facts}

    def scaling(self) -> dict[str, float]:
        """LoRA's factor of each module: lora_alpha / r, or / sqrt(r); 1 where no adapter_config.json says."""
        own, found = self.peft, {}
        for module, rank in ranks(self.state).items():
            alpha = _of_module(own, "alpha_pattern", module, own.get("lora_alpha", rank))
            found[module] = alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)
        return found


def _of_module(peft: dict, pattern: str, module: str, default: float) -> float:
    """What an entry of adapter_config.json, {regular expression: value}, has for a module."""
    values = peft.get(pattern) or {}
    return next((value for key, value in values.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def read_parent(spec: str | Path) -> Parent:
    """A parent from a run folder (its best checkpoint if kept, else its last), a file, or a peft folder."""
    path = Path(spec)
    if not path.exists():
        words = f"a run folder, a file of weights, a peft folder, or the word {ZERO_SHOT}"
        raise MissingFile(f"No parent at {path}: expected {words}")
    if path.is_dir() and (path / PEFT_CONFIG).is_file():
        return _read_peft(str(spec), path)
    file = find_weights(path) if path.is_dir() else path
    run = next((folder for folder in file.absolute().parents[:2] if (folder / "config.yaml").is_file()), None)
    state, epoch = read_state(file, trainer=_trainer_of(run) if run else None)
    known = run_facts(file.absolute())
    facts = {name: value for name, value in known.items() if name not in OF_THE_RUN}
    return Parent(str(spec), file, state, run, facts=facts, epoch=epoch)


def find_weights(folder: Path) -> Path:
    """The checkpoint of a run folder. Without a config its only folder of checkpoints counts."""
    own = any(folder.glob("model*.pth.tar*"))  # a model's folder
    if own or (folder / "config.yaml").is_file():
        return Path(find_model(str(folder), "" if own else _trainer_of(folder).model_name))
    models = sorted({file.parent.name for file in folder.glob("*/model*.pth.tar*")})
    if len(models) == 1:
        return Path(find_model(str(folder), models[0]))
    files = sorted(file for kind in ("*.safetensors", "*.pth", "*.pt") for file in folder.glob(kind))
    if not models and len(files) == 1:
        return files[0]
    found = ", ".join([*models, *(file.name for file in files)]) or "neither"
    raise MissingFile(
        f"{folder} is no parent: expected one folder of checkpoints or one file of weights, found {found}"
    )


def _trainer_of(run: Path) -> type:
    """The trainer of a run folder."""
    return trainer_class(read_run_cfg(run).TRAINER.NAME)


def _read_peft(spec: str, folder: Path) -> Parent:
    own = read_json(folder / PEFT_CONFIG)
    if not isinstance(own, dict) or own.get("peft_type", "LORA") != "LORA" or own.get("use_dora"):
        raise UserError(f"{folder / PEFT_CONFIG} describes no plain LoRA, and only that can be merged")
    file = next((folder / name for name in PEFT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise MissingFile(f"{folder} has an {PEFT_CONFIG} but no {' or '.join(PEFT_FILES)}")
    _check_peft(own, folder / PEFT_CONFIG)
    state, epoch = read_state(file)
    for module, rank in ranks(state).items():
        if (expected := _of_module(own, "rank_pattern", module, own.get("r", rank))) != rank:
            raise UserError(f"{folder / PEFT_CONFIG} gives {module} the rank {expected}, but its factors have {rank}")
    name = own.get("base_model_name_or_path")
    return Parent(spec, file, state, peft=own, facts={"backbone": {"name": name}} if name else {}, epoch=epoch)


def _check_peft(own: dict, where: Path) -> None:
    """UserError for a rank or a scaling that is no number, or patterns of modules that cannot be read."""
    values = {name: own[name] for name in ("r", "lora_alpha") if name in own}
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = {} if own.get(name) is None else own[name]
        try:
            values |= {f"{name} {re.compile(key).pattern}": value for key, value in pattern.items()}
        except (AttributeError, re.error) as error:
            raise UserError(f"{where}: {name} is {brief(pattern)}, expected {{module: number}} ({error})") from None
    for name, value in values.items():
        kind = int if name.startswith("r") else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= MOST_ALPHA:
            what = "whole number" if kind is int else "number"
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
    for name, value in state.items():
        if not is_plain_tensor(value):
            raise UserError(f"{file}: {name} is no plain tensor")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{file}: {name} is infinite or NaN, there is nothing to merge")
    return {name: value.detach() for name, value in state.items()}, epoch


def bound_to_classes(parent: Parent) -> list[str]:
    """Names of the weights that hold one entry a class: class-specific contexts, and heads."""
    trainer = parent.facts.get("trainer")
    known = trainer in TRAINER_REGISTRY.registered_names()
    head = getattr(TRAINER_REGISTRY.get(trainer), "head_key", "") if known else ""
    contexts = [name for name, value in parent.state.items() if name.split(".")[-1] == "ctx" and value.dim() == 3]
    return contexts + [name for name in parent.state if name == head]


def check_origin(parents: Sequence[Parent]) -> None:
    """Refuse parents of another backbone, activation, preprocessing, or class list where weights hold classes."""
    for name in ("digest", "name", "activation", "preprocess"):
        known = [(own, own.facts.get("backbone", {}).get(name)) for own in parents]
        known = [(own, value) for own, value in known if value is not None]
        if name == "name":  # a file of the same weights may go by another name
            known = [(own, value) for own, value in known if not own.facts["backbone"].get("digest")]
        for own, value in known[1:]:
            if value != known[0][1]:
                what = "backbone" if name in ("digest", "name") else name
                raise UserError(
                    f"Parents of another {what} cannot be merged: {_backbone(known[0][0], name)} and "
                    f"{_backbone(own, name)}"
                )
    known = [own for own in parents if own.facts.get("classes", {}).get("digest")]
    for own in known[1:]:
        bound = bound_to_classes(own)
        if bound and own.facts["classes"]["digest"] != known[0].facts["classes"]["digest"]:
            raise UserError(
                f"Parents of other classes cannot be merged, for {bound[0]} holds one entry a class: "
                f"{_classes(known[0])} and {_classes(own)}"
            )


def _backbone(parent: Parent, name: str) -> str:
    own = parent.facts["backbone"]
    value = f"{own.get('name')} ({own['digest'][:12]})" if name == "digest" else own[name]
    return f"{parent.spec} has {value}"


def _classes(parent: Parent) -> str:
    own = parent.facts["classes"]
    return f"{parent.spec} has {own['count']} ({own['first']} .. {own['last']})"
