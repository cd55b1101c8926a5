"""results.json: what a finished run was and what came of it. Written last, so its presence means finished."""

import os
import platform
from importlib import metadata

import torch

from dassl.utils import write_json
from dassl.utils.distributed import is_main, world_size
from dassl.utils.memory import report_peak

from .base import BEST

FILE = "results.json"
CLASSES = "classes.json"
FORMAT = 1
_PACKAGES = ("dassl", "torch", "torchvision", "numpy", "pillow")
_PROTOCOLS = {"base2novel": "base2new"}  # cfg.TRAINER.MODAL -> name of the protocol; others as they are


def write_results(folder, trainer, cfg, *, wall_s, command, kind="train", load_epoch=None, accuracy=None):
    """Log the peak memory and write `folder`/results.json -> its content. Every process of the run calls it.

    kind: "train" or "eval". wall_s: seconds, earlier sessions of a resumed run included. accuracy: what
    `test` returned, for a trainer whose own test passes the evaluator by. The `facts()` of the data
    set, if it has any, and of the trainer override the engine's fields.
    """
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    evaluator = trainer.evaluator
    metrics = getattr(evaluator, "results", None) or ({} if accuracy is None else {"accuracy": accuracy})
    results = {
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
        "split_digest": getattr(dataset, "split_digest", None),
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, "digest": None, "activation": None, "preprocess": None},
        "templates": getattr(dataset, "template", None),
        "data_seen": None,
        "chosen_on": _chosen_on(trainer, kind, load_epoch),
        "alpha_chosen_on": None,
        "versions": versions(),
        "device": device_name(trainer.device),
        "precision": _precision(trainer, cfg),
        "wall_s": round(wall_s, 3),
        "peak_mb": report_peak(trainer.device),
        "command": command,
        "max_epoch": cfg.OPTIM.MAX_EPOCH,
        "epochs": _epochs(trainer, cfg, kind, load_epoch),
    }
    if hasattr(dataset, "facts"):
        results |= dataset.facts()
    results |= trainer.facts()
    if kind == "train":
        results["history"] = trainer._history.epochs
    if world_size() > 1:
        results["processes"] = world_size()
    if is_main():
        write_classes(folder, trainer)
        write_json(results, os.path.join(folder, FILE))
    return results


def write_classes(folder, trainer):
    """`folder`/classes.json: what a model needs of its data set once the pictures are gone.

    dataset, classnames (by label), template and templates (by family of methods), as far as there are any.
    """
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if not getattr(dataset, "classnames", None):
        return
    facts = {"format": FORMAT, "dataset": trainer.cfg.DATASET.NAME, "classnames": list(dataset.classnames)}
    template, templates = getattr(dataset, "template", None), getattr(dataset, "templates", None)
    if isinstance(template, str):
        facts["template"] = template
    if isinstance(templates, dict) and all(isinstance(value, str) for value in templates.values()):
        facts["templates"] = templates  # others keep lists of functions there
    write_json(facts, os.path.join(folder, CLASSES))


def versions():
    """Of Python and the packages; None for one that runs straight from its folder."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _chosen_on(trainer, kind, load_epoch):
    """What chose the evaluated weights."""
    if kind == "eval" and load_epoch is not None:
        return f"epoch {load_epoch}"
    validated = trainer.chooses_best() and trainer.has_validation()
    if kind == "eval" and trainer._loaded is not None:
        file, _, result = trainer._loaded
        validated = file == BEST and result is not None  # a best one without result is the last
    return "validation" if validated else "last_step"


def _epochs(trainer, cfg, kind, load_epoch):
    """Epochs that the evaluated weights were trained for; None if unknown."""
    if kind == "train":
        return cfg.OPTIM.MAX_EPOCH
    return trainer._loaded[1] if trainer._loaded is not None else load_epoch


def _precision(trainer, cfg):
    """The mode; a trainer in Dassl's style keeps it in a node named after itself."""
    if trainer.CONFIG:
        return trainer.precision.mode
    return cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}).get("PREC", trainer.precision.mode)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
