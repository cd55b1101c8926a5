"""The recipe of a run: what its results follow from. Is the run that lies in a folder the one that is asked for?

The table of keys says of each what it bears on (`Key.role`); nodes of other trainers bear on nothing. A path that names
an input (stage 1, a teacher, the backbone's file, a subset) is compared by what lies there, wherever that is now, and
the data by its lists of images. A finished run keeps both in results.json: `recipe` and `inputs`.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from yacs.config import CfgNode as CN

from dassl.config import RULES, Key, leaves, read_yaml, with_values
from dassl.utils import UserError, brief, digest, quiet

from .base import dataset_of
from .build import config_nodes, trainer_class
from .checkpoint import CONFIG, RESULTS, RESUME, check_written, content_digest, finished, scored, whole

TYPED = ("SEED", "RESUME", "RESUME_COOP", "TRAINER.NAME")  # what a command line says, not a yaml
DATA = "DATASET.ROOT"  # the input that the lists of images are
DRAW = {"SUBSET": "", "NUM_SHOTS": -1, "SUBSAMPLE_CLASSES": "all"}  # of DATASET, for whole lists
_NOBODYS = Key(None)  # a key that no table has
GO_ON = "Give that config to go on, --overwrite to start afresh, or another --output-dir to keep both"


def plain(value: object) -> object:
    """A value by which a list and a tuple of equal items are equal."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def own_nodes(cfg: CN) -> set[str]:
    """Nodes of cfg.TRAINER that the run's trainer reads; empty for one in Dassl's style, which reads what it likes."""
    return {node for node, _ in config_nodes(trainer_class(cfg.TRAINER.NAME))}


def is_read(key: str, nodes: Iterable[str]) -> bool:
    """Does a trainer with these nodes read the key?"""
    parts = key.split(".")
    return parts[0] != "TRAINER" or len(parts) < 3 or not nodes or parts[1] in nodes


def role(key: str) -> str:
    """What a config key bears on: "" (all results), "training", "evaluation" or "incidental"; see Key."""
    return RULES.get(key, _NOBODYS).role


def recipe(cfg: CN, kind: str = "train") -> dict[str, object]:
    """{key: value} of what the results of a run follow from. kind: "eval" leaves out what only trains."""
    nodes, out = own_nodes(cfg), ("incidental", "training") if kind == "eval" else ("incidental",)
    return {key: plain(value) for key, value in leaves(cfg) if role(key) not in out and is_read(key, nodes)}


def changed_keys(recipe: CN, cfg: CN) -> list[tuple[str, object, object]]:
    """(key, value in the yaml files' config, value of the run) of each difference that bears on results."""
    pairs = zip(leaves(recipe), leaves(cfg), strict=True)
    return [(k, old, new) for (k, old), (_, new) in pairs if old != new and role(k) != "incidental" and k not in TYPED]


def changed(recorded: Mapping, asked: Mapping) -> list[str]:
    """["OPTIM.MAX_EPOCH 1, asked for 5"] of each key that is asked for and was another.

    1 is 1.0, a list is the tuple of its items. What the record lacks counts with its default, and where nobody knows
    that, as equal: so does what is no longer asked for.
    """
    lines = []
    for key, value in asked.items():
        before = recorded[key] if key in recorded else RULES[key].default if key in RULES else value
        if plain(before) != plain(value):
            lines.append(f"{key} {brief(before)}, asked for {brief(value)}")
    return lines


# What a run begins from


def paths(cfg: CN, kind: str = "train") -> dict[str, str]:
    """The inputs of a run that are files or folders; those of own data count as its lists of images."""
    named = {key: str(value) for key, value in recipe(cfg, kind).items() if value and RULES.get(key, _NOBODYS).path}
    file = os.path.join(cfg.MODEL.BACKBONE.PATH, f"{cfg.MODEL.BACKBONE.NAME.replace('/', '-')}.pt")
    named |= {"MODEL.BACKBONE.PATH": file} if os.path.isfile(file) else {}  # one of OpenAI's files in a folder
    named = {key: path for key, path in named.items() if os.path.isfile(path) or not key.endswith("NAME")}
    return {key: path for key, path in named.items() if not key.startswith("DATASET.CUSTOM.")}


def input_digests(cfg: CN, kind: str = "train", trainer: object = None, memo: dict | None = None) -> dict[str, str]:
    """{key: digest} of the inputs that are there. trainer: the run's, with its data, where it is built already.

    memo: a dict that a caller of many keeps, as long as nothing that they begin from changes.
    """
    memo, data = {} if memo is None else memo, None
    inputs = {k: memo.get(p) or memo.setdefault(p, content_digest(p)) for k, p in paths(cfg, kind).items()}
    if trainer is not None:
        data = data_digest(dataset_of(trainer), cfg.DATASET.NAME)
    else:
        lists = digest({**cfg.DATASET, "CUSTOM": {**cfg.DATASET.CUSTOM}} | DRAW, cfg.TRAINER.MODAL)
        data = memo.get(lists) or memo.setdefault(lists, data_digest(build_lists(cfg), cfg.DATASET.NAME))
    return {key: value for key, value in (inputs | {DATA: data}).items() if value}


def build_lists(cfg: CN) -> object:
    """The data set of a config, whatever part of it is asked for; None where it cannot be read, or has no digest."""
    from dassl.data.datasets import DATASET_REGISTRY

    cfg = with_values(cfg, {f"DATASET.{key}": value for key, value in DRAW.items()} | {"VERBOSE": False})
    with contextlib.suppress(UserError, OSError, KeyError), quiet():  # what is odd is said by the run
        cls = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        return cls(cfg) if hasattr(cls, "split_digest") else None
    return None


def metadata_of(part: object) -> dict:
    """What a dataset or a trainer says of itself for results.json; others' may use the name for something else."""
    metadata = getattr(part, "metadata", None)
    return metadata() if callable(metadata) else {}


def data_digest(dataset: object, name: str = "") -> str:
    """Which images, labels and names a data set has, as far as it, or what results.json has of it, says."""
    if not isinstance(dataset, Mapping):
        said = metadata_of(dataset)
        dataset = {"dataset": name, "split_digest": getattr(dataset, "split_digest", None)} | said
    words = [dataset.get(fact) for fact in ("dataset", "split_digest", "world_digest")]
    return " ".join(map(str, filter(None, words))) if words[1] else ""


def begun_from(cfg: CN) -> str:
    """Which inputs are runs that were broken off, or still train, and how far they are; "" for none."""
    inputs = {key: path for key, path in paths(cfg).items() if key != "RESUME"}  # which this run goes on with
    return "; ".join(f"{key}: {line}" for key, path in inputs.items() if (line := unfinished(path)))


# What lies in a folder


def record(folder: str | Path) -> dict:
    """What the run in a folder says of itself: kind, recipe, inputs, weights; {} where none has begun.

    Of older versions it has no digests; what a finished run of those says of its data counts.
    """
    state, file = finished(folder), Path(folder, CONFIG)
    if state:
        state["inputs"] = state.get("inputs", {}) | {DATA: data_digest(state)}
    elif Path(folder, RESUME).is_file():
        state = _resume_state(Path(folder, RESUME))
    if not (state.get("format") and (state.get("epoch") or "within" in state or "metrics" in state)):
        return {}  # none, or broken off in its first epoch: it begins again
    config = state.get("recipe") or {}
    if "TRAINER.NAME" not in config:  # an older version's: none, or of another form
        config = dict(leaves(read_yaml(file))) if file.is_file() else state.get("config", {})
    return {"kind": "train", "inputs": {}, "weights": {}} | state | {"recipe": config}


def unfinished(place: str | Path, epochs: int | None = None) -> str:
    """ "epochs 30 of 300, unfinished" of a run's folder, or a file or folder in it, whose training has not ended, or
    what a finished one says of that from which it began; else "". epochs: what the weights in question have; default:
    what the run has done."""
    run = next((up for up in (Path(place), *Path(place).absolute().parents[:2]) if (up / CONFIG).is_file()), None)
    if run is None:
        return ""
    if facts := whole(run):
        row = facts.get("row")  # of a merge
        return str((row if isinstance(row, dict) else facts).get("unfinished") or "")
    if epochs is None:
        epochs = _resume_state(run / RESUME).get("epoch", 0)
    return f"epochs {epochs} of {dict(leaves(read_yaml(run / CONFIG))).get('OPTIM.MAX_EPOCH')}, unfinished"


def check_config(file: str | Path | None, config: Mapping) -> None:
    """UserError unless a finished run's config.yaml, of these values, is what it was run with."""
    if file:
        check_written(file)
    if file and (lines := changed(config, whole(Path(file).parent).get("recipe", {}))):
        raise UserError(f"{file} is not of the run of {Path(file).parent / RESULTS}: {'; '.join(lines)}")


def _resume_state(path: Path) -> dict:
    """What resume.pt holds, its tensors left on the disk; {} of a damaged one, of which its reader says so."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # which holds what it reads against its checksum
            archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:
        return {}
    fits = isinstance(state, dict) and all(isinstance(state.get(part, {}), dict) for part in ("config", "inputs"))
    return state if fits else {}


def differences(
    folder: str | Path,
    cfg: CN,
    *,
    eval_only: bool = False,
    model_dir: str = "",
    load_epoch: int | str | None = None,
    memo: dict | None = None,
) -> list[str]:
    """Lines on what the run in a folder, finished or not, has otherwise than this one would; [] for the same recipe,
    and where no run has begun. memo: of `input_digests`.

    An evaluation is compared in what it scores: the weights in `model_dir`, data, subset and split, not in what trained
    them.
    """
    recorded, kind = record(folder), "eval" if eval_only else "train"
    if not recorded:
        return []
    if recorded["kind"] != kind:
        return [f"kind {recorded['kind']}, asked for {kind}"]
    if not recorded["recipe"]:
        return [f"{CONFIG} is gone, so nobody knows what it was"]
    asked = recipe(cfg, kind)
    if "metrics" not in recorded:  # the half of a run that began from another one has what it took from it
        asked.pop("RESUME")
    if model_dir:  # whose seed is that of the row
        asked.pop("SEED")
    lines = differing(recorded, asked, input_digests(cfg, kind, memo=memo))
    weights = recorded["weights"] if kind == "eval" and model_dir else {}
    now = scored(weights["file"], model_dir, load_epoch) if weights else ""
    if now and now != weights["digest"]:
        lines.append(f'the weights in "{model_dir}" are others than those that were scored')
    return lines


def differing(recorded: Mapping, asked: Mapping, inputs: Mapping[str, str]) -> list[str]:
    """`changed`, where an input that both know counts by its digest."""
    before, config = recorded["inputs"], recorded["recipe"]
    both = {key for key in inputs if before.get(key)}
    # an older version kept no digests: all that it knows of a path is whether there was one
    both |= {key for key in inputs if key not in before and config.get(key)} - {"MODEL.BACKBONE.NAME"}
    if DATA in both:
        both |= {key for key in asked if key.startswith("DATASET.CUSTOM.") and RULES[key].path}
    lines = changed(config, {key: value for key, value in asked.items() if key not in both})
    for key in sorted(both & before.keys() & inputs.keys()):
        if before[key] != inputs[key]:
            what = "the data set" if key == DATA else f'{key} "{asked[key]}"'
            lines.append(f"{what} holds something else than the run began from")
    return lines
