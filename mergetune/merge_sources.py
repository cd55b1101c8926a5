"""The parents of a merge: weights from a run folder, a file or a peft folder, and what is known of their origin."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY, read_run_cfg, trainer_class
from dassl.engine.checkpoint import find_model
from dassl.engine.recipe import check_written, unfinished
from dassl.engine.results import run_classes, run_facts, run_file
from dassl.merging.lora import ranks
from dassl.merging.records import ZERO_SHOT
from dassl.utils import MissingFile, UserError, brief, get_logger, read_json, sha256_file
from dassl.utils.moved import old_names
from dassl.utils.torchtools import check_weights, drop_token_buffers, load_weights
from mergetune.stage1 import used_keys

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
    it has a config."""

    spec: str
    file: Path | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    run: Path | None = None
    peft: dict = field(default_factory=dict)  # adapter_config.json
    scaling: dict[str, float] = field(default_factory=dict)  # LoRA's factor of each module
    facts: dict = field(default_factory=dict)
    epoch: int | None = None
    unfinished: str = ""  # how far its training is, if that has not ended

    def __post_init__(self) -> None:
        self.sha256 = sha256_file(str(self.file)) if self.file else self.spec  # a word is itself

    def record(self) -> dict:
        """What merge.json says of it."""
        if self.file is None:
            return {"path": self.spec}
        record = {"path": str(self.file.resolve()), "sha256": self.sha256, "epoch": self.epoch}
        record |= {"unfinished": self.unfinished} if self.unfinished else {}
        return record | {name: self.facts[name] for name in SHOWN if name in self.facts}


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
    if line := unfinished(file, epoch):
        log.warning(f"{spec}: {line}")
    return Source(
        str(spec), file, state, config and config.parent, scaling=dict.fromkeys(ranks(state), 1.0),
        facts={name: value for name, value in run_facts(file.absolute()).items() if name not in OF_THE_RUN},
        epoch=epoch, unfinished=line,
    )  # fmt: skip


def _read_peft(spec: str, folder: Path) -> Source:
    config, peft = folder / PEFT_CONFIG, read_json(folder / PEFT_CONFIG)
    if not isinstance(peft, dict) or peft.get("peft_type", "LORA") != "LORA" or peft.get("use_dora"):
        raise UserError(f"{config} describes no plain LoRA, and only that can be merged")
    file = next((folder / name for name in PEFT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise MissingFile(f"{folder} has an {PEFT_CONFIG} but no {' or '.join(PEFT_FILES)}")
    for name in (file, config):
        check_written(name)
    state, epoch = read_state(file)
    name = peft.get("base_model_name_or_path")
    facts = {"backbone": {"name": name}} if name else {}
    return Source(spec, file, state, peft=peft, scaling=_scaling(peft, state, config), facts=facts, epoch=epoch)


def _scaling(peft: dict, state: dict[str, Tensor], where: Path) -> dict[str, float]:
    """LoRA's factor of each module: lora_alpha / r, or / sqrt(r). UserError for a rank that its factors have not, an
    alpha that is no number, or ranks and alphas of single modules."""
    if patterns := [name for name in ("rank_pattern", "alpha_pattern") if peft.get(name)]:
        raise UserError(f"{where}: {patterns[0]} is of single modules: only one rank and one alpha can be merged")
    scaling, alpha = {}, peft.get("lora_alpha")
    for module, rank in ranks(state).items():
        if peft.get("r") != rank:
            raise UserError(f"{where} gives {module} the rank {brief(peft.get('r'))}, but its factors have {rank}")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MOST_ALPHA:
            what = f"expected a number above 0 and up to {MOST_ALPHA}"
            raise UserError(f"{where}: lora_alpha of {module} is {brief(alpha)}, {what}")
        scaling[module] = alpha / (math.sqrt(rank) if peft.get("use_rslora") else rank)
    return scaling


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

    def check(what: str, said: list[tuple[str, object, object]]) -> None:
        """said: source, what is to be equal, and what is shown of it, of each that says."""
        for spec, value, shown in said:
            if value != said[0][1]:
                raise UserError(f"Parents of other {what}: {said[0][0]} has {said[0][2]} and {spec} has {shown}")

    backbones = [(source.spec, source.facts.get("backbone", {})) for source in sources]
    known = [(spec, b, b["digest"]) for spec, b in backbones if b.get("digest")]
    check("backbones", [(spec, digest, f"{b.get('name')} ({digest[:12]})") for spec, b, digest in known])
    check("backbones", [(spec, b["name"], b["name"]) for spec, b in backbones if b.get("name") and not b.get("digest")])
    for fact in ("activation", "preprocess"):
        check(fact, [(spec, b[fact], b[fact]) for spec, b in backbones if b.get(fact) is not None])
    if bound := [name for source in sources for name in bound_to_classes(source)]:
        classes = [(s.spec, c) for s in sources if (c := s.facts.get("classes", {})).get("digest")]
        shown = [(spec, c["digest"], f"{c['count']} ({c['first']} .. {c['last']})") for spec, c in classes]
        check(f"classes cannot be merged, for {bound[0]} holds one entry a class", shown)


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
    number = "VALUE" if value is None else f"{value:g}"
    pattern = f"{prefix or 'PREFIX'}_ties_lambda_{number}.pth" if method == "ties" else f"{prefix}*dare*.pth"

    def fits(file: str) -> bool:
        of_method = ("dare" in file.lower()) == (method == "dare") and (method == "dare" or _lambda(file) is not None)
        return of_method and file.startswith(prefix) and file.endswith(SUFFIXES) and value in (None, _lambda(file))

    files = [file for file in there if (file.removeprefix(name) in ("", *SUFFIXES) if name else fits(file))]
    if not files:
        raise MissingFile(f"No merged weights {name or pattern} in {place} (there: {', '.join(there) or 'nothing'})")
    if len(files) > 1:
        ways = "choose with --lambda-val, --model-prefix or --model-name"
        raise UserError(f"{place} holds several merged weights ({', '.join(files)}): {ways}")
    return place / files[0]


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
