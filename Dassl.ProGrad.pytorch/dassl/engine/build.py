"""Trainers by name, and the config keys that they bring along."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from dassl.config import KEYS, Key, Keys, add_missing, build_node, check_values, complete, declare, leaves
from dassl.utils import Registry, UserError, check_availability, get_logger

TRAINER_REGISTRY = Registry(
    "TRAINER", built_in=("dassl.engine.da", "dassl.engine.dg", "dassl.engine.ssl"), plugins="trainers"
)
"""Trainer classes by `__name__`.

A member is called as `Trainer(cfg)` and derives from SimpleTrainer (see trainer.py), mostly through TrainerX.
Class attributes that the engine reads: CONFIG and KEYS or `default_config()` (its own keys), `needs_checkpoint`
(False: `--eval-only` works without a trained model).
"""


def trainer_class(name: str) -> type[Any]:
    """The class of that name. Raises UserError with the nearest and all names."""
    check_availability(name, TRAINER_REGISTRY, "TRAINER.NAME")
    return TRAINER_REGISTRY.get(name)


def checked_class(cfg: CN) -> type[Any]:
    """The class that cfg.TRAINER.NAME names. What cfg lacks of the engine's keys gets its default.

    UserError: a value that its key does not take, or that does not go with another. A class that declares no KEYS, as
    one written for Dassl, may know other names than our choices, and reads its node of cfg.TRAINER as it likes.
    """
    cls: Any = trainer_class(complete(cfg).TRAINER.NAME)
    add_trainer_nodes(cfg, [cls])
    mine, nodes = trainer_keys(cls), tuple(f"TRAINER.{node}." for node, _ in config_nodes(cls))
    engine = {n: key for n, key in KEYS.items() if not re.match(r"TRAINER\.\w+\.", n) or mine and n.startswith(nodes)}
    check_values(cfg, engine | mine, choices=bool(mine))
    if mine:
        cls.check_cfg(cls.__new__(cls), cfg)
    return cls


def build_trainer(cfg: CN) -> Any:
    """The trainer that cfg.TRAINER.NAME names, with its data, model and evaluator built."""
    cls = checked_class(cfg)
    if cfg.VERBOSE:
        get_logger().debug(f"Loading trainer: {cfg.TRAINER.NAME}")
    try:
        return cls(cfg)
    except ValueError as error:  # torch's words, or ours around them
        if "empty parameter list" not in str(error):
            raise
        raise UserError(f"{source_of(cls)} has nothing to train: its optimizer got no parameters") from error


def source_of(cls: type) -> str:
    """A class with its file, for errors."""
    return f"{cls.__name__} ({getattr(sys.modules.get(cls.__module__), '__file__', cls.__module__)})"


def config_nodes(cls: type) -> list[tuple[str, type]]:
    """[(node below cfg.TRAINER, class that brings it)], base classes first."""
    return [(base.__dict__["CONFIG"], base) for base in reversed(cls.__mro__) if base.__dict__.get("CONFIG")]


def trainer_keys(cls: type) -> Keys:
    """{"TRAINER.NODE.KEY": Key} of what a class and its base classes declare and give a default."""
    keys: dict[str, Key] = {}
    for node, base in config_nodes(cls):
        defaults = dict(leaves(_defaults(base)))
        declared = {name: key for name, key in getattr(base, "KEYS", {}).items() if defaults.get(name) == key.default}
        keys = {f"TRAINER.{node}.{name}": key for name, key in declared.items()} | keys
    return keys


def _defaults(base: type[Any]) -> CN:
    """The keys that a trainer or a mixin brings along, as a tree."""
    return base.default_config() if hasattr(base, "default_config") else build_node(base.KEYS)


def add_trainer_nodes(cfg: CN, classes: Iterable[type] | None = None) -> None:
    """Give `cfg` the nodes of these trainers (default: all that are registered) and of their base classes, in place.

    Each class that defines CONFIG brings KEYS or `default_config()` to cfg.TRAINER.<CONFIG>. Two classes may share a
    node: it gets the union of their keys, and what is there already stays.
    """
    for cls in map(TRAINER_REGISTRY.get, TRAINER_REGISTRY) if classes is None else classes:
        for node, base in config_nodes(cls):
            add_missing(cfg.TRAINER, CN({node: _defaults(base)}))
        declare(trainer_keys(cls))


def published_files() -> tuple[Path, ...]:
    """The JSON files in `published/` of each package that has registered a trainer."""
    packages = {sys.modules[cls.__module__.partition(".")[0]] for cls in map(TRAINER_REGISTRY.get, TRAINER_REGISTRY)}
    homes = [Path(file).parent for package in packages if (file := getattr(package, "__file__", None))]
    return tuple(sorted((file for home in homes for file in home.glob("published/*.json")), key=lambda file: file.name))
