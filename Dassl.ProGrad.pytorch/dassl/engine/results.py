"""results.json: what a finished run was and what came of it. Written last, so its presence means finished."""

import contextlib
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from dassl.config import leaves, read_yaml
from dassl.report.disclosures import FEWER
from dassl.report.methods import CHANGED
from dassl.utils import MissingFile, UserError, digest, get_logger, read_json, write_json
from dassl.utils.device import device_name
from dassl.utils.distributed import is_main, world_size
from dassl.utils.memory import report_peak

from .base import dataset_of
from .checkpoint import BEST, CONFIG, LAST, MERGE, check_written, find_file, weights_digest, written
from .checkpoint import RESULTS as FILE
from .recipe import check_config, metadata_of, recipe

CLASSES = "classes.json"
FORMAT = 1
# what describes a trained model, and not the run that evaluates it; the same in a config; what an evaluation says of it
# where nobody knows
_OF_MODEL = ("preset", "shots", "seed", "max_epoch", "lmc", "data_seen", "source", "source_subset", "merge",
             "alpha_chosen_on")  # fmt: skip
_IN_CONFIG = {"preset": "PRESET", "shots": "DATASET.NUM_SHOTS", "seed": "SEED", "max_epoch": "OPTIM.MAX_EPOCH",
              "source": "DATASET.NAME", "source_subset": "DATASET.SUBSAMPLE_CLASSES"}  # fmt: skip
UNKNOWN: dict[str, Any] = {
    "preset": "", "shots": None, "max_epoch": None, "lmc": None, "source": "", "source_subset": "",
    "data_seen": "unknown: no results.json beside the checkpoint",
}  # fmt: skip
_PACKAGES = ("dassl", "torch", "torchvision", "numpy", "pillow")
_PROTOCOLS = {"base2novel": "base2new"}  # cfg.TRAINER.MODAL -> name of the protocol; others as they are


def write_results(
    folder: str,
    trainer: Any,
    cfg: CN,
    wall_s: float,
    command: str,
    kind: str = "train",
    load_epoch: int | None = None,
    accuracy: float | None = None,
    others: dict | None = None,
) -> dict:
    """Log the peak memory and write `folder`/results.json -> its content. Every process of the run calls it.

    kind: "train" or "eval". wall_s: seconds, earlier sessions of a resumed run included. accuracy: what `test`
    returned, for a trainer whose own test passes the evaluator by. others: the entry of that name. The
    `metadata()` of the dataset, if any, and of the trainer override the engine's fields; what the trained model's own
    folder says (`trained_facts`) overrides both.
    """
    dataset = dataset_of(trainer)
    results = _engine_facts(folder, trainer, cfg, kind, load_epoch, accuracy)
    results |= {"wall_s": round(wall_s, 3), "peak_mb": report_peak(trainer.device), "command": command}
    results |= {"max_epoch": cfg.OPTIM.MAX_EPOCH, "recipe": recipe(cfg, kind), "inputs": trainer._progress.inputs}
    if names := getattr(dataset, "classnames", None):
        results["classes"] = classes_fact(names)
    results |= metadata_of(dataset) | metadata_of(trainer)
    results |= {name: value for name, value in trainer.trained.items() if value or name in results}
    if kind == "train":
        results["history"] = trainer._history
    if others is not None:
        results["others"] = others
    if world_size() > 1:
        results["processes"] = world_size()
    if is_main():
        if folder == cfg.OUTPUT_DIR and not os.path.isfile(os.path.join(folder, CONFIG)):
            raise UserError(f'"{folder}" was removed or emptied while the run was in it: run it again')
        about = write_classes(folder, trainer)
        if about and isinstance(results["classes"], dict):  # others' trainers keep there what they like
            results["classes"] |= {"file": digest(about)}
        write_json(results, os.path.join(folder, FILE))
    return results


def _engine_facts(folder, trainer, cfg, kind, load_epoch, accuracy):
    """The fields that say what was run, and what came of it."""
    dataset, evaluator = dataset_of(trainer), trainer.evaluator
    metrics = getattr(evaluator, "results", None) or ({} if accuracy is None else {"accuracy": accuracy})
    # where a trainer in Dassl's style keeps its mode: a node named after itself
    node = {} if trainer.CONFIG else cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {})
    return {
        "format": FORMAT,
        "kind": kind,
        "trainer": cfg.TRAINER.NAME,
        "preset": cfg.PRESET,
        "dataset": cfg.DATASET.NAME,
        "protocol": _PROTOCOLS.get(cfg.TRAINER.MODAL, cfg.TRAINER.MODAL),
        "subset": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "correct": getattr(evaluator, "correct", None),
        "total": getattr(evaluator, "total", None),
        "weights": weights_fact(folder, trainer, kind),
        "split_digest": getattr(dataset, "split_digest", None),
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, "digest": None, "activation": None, "preprocess": None},
        "templates": getattr(dataset, "template", None),
        "data_seen": None,
        **_choice(trainer, cfg, kind, load_epoch),
        "alpha_chosen_on": None,
        "versions": versions(),
        "device": device_name(trainer.device),
        "precision": node.get("PREC", trainer.precision.mode),
    }


def weights_fact(folder: str, trainer: Any, kind: str) -> dict:
    """Which weights were scored: {"file", "digest"}, and {file: digest} of all that a training has written."""
    files, names = trainer._files, trainer.get_model_names()
    if kind == "train" and not files and names and not trainer.cfg.TEST.NO_TEST:
        with contextlib.suppress(MissingFile):  # a trainer may keep its weights elsewhere
            files = [find_file(folder, name, LAST) for name in names]
    facts = {}
    if files:
        named = ["/".join(Path(file).parts[-2:]) for file in files]
        facts = {"file": ", ".join(named), "digest": weights_digest(files)}
    return facts | ({"files": written(folder)} if kind == "train" else {})


def run_file(place: str | Path, name: str) -> Path | None:
    """A file of the run that a checkpoint, its model folder or a run folder belongs to -> Path, None without one."""
    place = Path(place).absolute()
    levels = 2 if not place.is_dir() else 1 if any(place.glob("model*.pth.tar*")) else 0
    return next((file for folder in [place, *place.parents[:levels]] if (file := folder / name).is_file()), None)


def run_facts(place: str | Path) -> dict:
    """What merge.json and results.json of the run at `place` (see `run_file`) say; empty where there is neither."""
    files = [read_json(file) for name in (MERGE, FILE) if (file := run_file(place, name))]
    return {name: value for facts in files if isinstance(facts, dict) for name, value in facts.items()}


def run_classes(place: str | Path) -> list[str] | None:
    """The class names of the run at `place` (see `run_file`), by label; None where classes.json does not say."""
    file = run_file(place, CLASSES)
    facts = read_json(file) if file else None
    names = facts.get("classnames") if isinstance(facts, dict) else None
    if not file or not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    check_written(file)
    scored = run_facts(file).get("classes")
    scored = scored if isinstance(scored, dict) else {}
    if any(scored.get(key, digest(value)) != digest(value) for key, value in (("digest", names), ("file", facts))):
        raise UserError(f"{file} is not of the run of {file.parent / FILE}, whose classes or templates are others")
    return names


def trained_facts(place: str | Path, trainer: Any, by: str = "") -> dict:
    """Fields of results.json that describe the trained model at `place`, as its own folder says; an evaluation's.

    Nothing comes from the command line that evaluates: what nobody knows is None, and said. Behind the preset stands
    another trainer than `by` (default: the one that evaluates), and each of its `held_keys` that is not as it was.
    """
    facts, file, used = run_facts(place), run_file(place, CONFIG), dict(leaves(trainer.cfg))
    config = dict(leaves(read_yaml(file))) if file else {}
    check_config(file, config)
    changes = [key for key in getattr(trainer, "held_keys", ()) if config.get(key, used[key]) != used[key]]
    if facts:
        names = _OF_MODEL + (("templates",) if getattr(trainer, "learns_prompts", False) else ())
        row = facts["row"] if isinstance(facts.get("row"), dict) else {}
        known = {name: facts[name] for name in names if name in facts} | row
        if facts.get("trainer") not in (None, by or trainer.cfg.TRAINER.NAME):
            changes.append(f"trained by {facts['trainer']}")
    else:
        known = {name: config[key] for name, key in _IN_CONFIG.items() if key in config}
        what = "its training is not finished" if known else "preset, shots and epochs of its training are unknown"
        get_logger().info(f"{place} has no {FILE}: {what}")
    known = UNKNOWN | known
    if not isinstance(known.get("seed"), int) or known["seed"] < 0:
        known.pop("seed", None)
    return known | {"preset": with_changes(str(known["preset"] or ""), changes)}


def classes_fact(classnames: Iterable[str]) -> dict:
    """A class list in short: enough to compare two and to name the difference."""
    names = list(classnames)
    return {"count": len(names), "first": names[0], "last": names[-1], "digest": digest(names)}


def check_classes(place: str | Path, classnames: Iterable[str], reason: str = "") -> None:
    """UserError unless the model at `place` was trained on these classes, as far as its own folder says.

    reason: why the model knows no others; then it is said where nobody knows.
    """
    names = run_classes(place)
    known, tested = classes_fact(names) if names else run_facts(place).get("classes"), classes_fact(classnames)
    if not isinstance(known, dict) or known.keys() < tested.keys():
        if reason:
            what = f"{place} does not say what its classes are called, only their number is compared"
            get_logger().info(f"{what}: {reason}")
    elif known["digest"] != tested["digest"]:
        raise UserError(
            f"{place} was trained on {known['count']} classes ({known['first']} .. {known['last']}), "
            f"this run has {tested['count']} ({tested['first']} .. {tested['last']})" + (reason and f": {reason}")
        )


def with_changes(preset: str, changes: Sequence[str]) -> str:
    """A preset's name, and behind it what differs from the recipe."""
    if not changes:
        return preset
    words = ", ".join(changes) if CHANGED in preset else f"{CHANGED}{', '.join(changes)}"
    return ", ".join(filter(None, [preset, words]))


def images_seen(trainer: Any, every: str = "all images") -> str:
    """What a training run saw, as `data_seen` has it: "16 shots of base classes", and how many classes have fewer."""
    data, dataset = trainer.cfg.DATASET, dataset_of(trainer)
    counts = Counter(item.label for item in getattr(dataset, "train_x", ())).values()
    fewer = [count for count in counts if count < data.NUM_SHOTS]
    words = FEWER.format(f"{len(fewer)} of {len(counts)} classes, at least {min(fewer)} each") if fewer else ""
    return f"{f'{data.NUM_SHOTS} shots' if data.NUM_SHOTS > 0 else every} of {data.SUBSAMPLE_CLASSES} classes{words}"


def write_classes(folder: str, trainer: Any) -> dict | None:
    """`folder`/classes.json -> its content: what a model needs of its data set once the images are gone.

    dataset, classnames (by label), template and templates (by family of methods), as far as there are any.
    """
    dataset = dataset_of(trainer)
    if not getattr(dataset, "classnames", None):
        return None
    facts = {"format": FORMAT, "dataset": trainer.cfg.DATASET.NAME, "classnames": list(dataset.classnames)}
    template, templates = getattr(dataset, "template", None), getattr(dataset, "templates", None)
    if isinstance(template, str):
        facts["template"] = template
    if isinstance(templates, dict) and all(isinstance(value, str) for value in templates.values()):
        facts["templates"] = templates  # others keep lists of functions there
    write_json(facts, os.path.join(folder, CLASSES))
    return facts


def versions() -> dict[str, str | None]:
    """Of Python and the packages; None for one that runs straight from its folder."""
    versions: dict[str, str | None] = {"python": platform.python_version()} | dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _choice(trainer, cfg, kind, load_epoch):
    """Which weights of a training were scored: chosen_on, epochs, warmup, and instead_of where a line named others than
    that training, of the config.yaml beside them, would choose."""
    loaded = trainer._loaded  # (file, epochs, validation result)
    validated = trainer.chooses_best() and trainer.has_validation()
    if kind == "train":
        validated &= trainer.best_result > -math.inf  # not where nothing was left to train
        nothing_left = trainer.start_epoch >= trainer.max_epoch and (cfg.RESUME or not cfg.OPTIM.MAX_EPOCH)
        epochs = trainer.start_epoch if nothing_left else cfg.OPTIM.MAX_EPOCH
    else:
        epochs = load_epoch if loaded is None else loaded[1]
    if loaded is not None and (kind == "eval" or validated):
        validated = loaded[0] == BEST and loaded[2] is not None  # a best one without result is the last
    chosen, scored = ("validation", epochs if loaded is None else loaded[1]) if validated else ("last_step", epochs)
    if kind == "eval" and load_epoch is not None:
        scored, last = epochs, load_epoch == trainer.trained.get("max_epoch", cfg.OPTIM.MAX_EPOCH)
        chosen = "last_step" if last else f"epoch {load_epoch}"
    known = kind == "eval" and trainer._files and not trainer.trained.get("merge")
    file = run_file(trainer._files[0], CONFIG) if known else None
    training = dict(leaves(cfg if kind == "train" else read_yaml(file) if file else {}))
    usual = training.get("TEST.FINAL_MODEL", cfg.TEST.FINAL_MODEL)
    named = kind == "eval" and load_epoch is not None and {chosen, usual} != {"last_step"}
    known = isinstance(scored, int) and "OPTIM.WARMUP_EPOCH" in training
    constant = training.get("OPTIM.WARMUP_TYPE") == "constant"  # then those of its epochs have one rate, a tiny one
    warmup = constant and 0 < scored <= training["OPTIM.WARMUP_EPOCH"] if known else None
    return {"chosen_on": chosen, "epochs": epochs, "warmup": warmup} | ({"instead_of": usual} if named else {})
