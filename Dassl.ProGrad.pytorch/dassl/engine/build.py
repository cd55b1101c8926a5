"""Trainers by name, and the config keys that they bring along."""

import os
import re
import sys

from yacs.config import CfgNode as CN

from dassl.config import (
    KEYS,
    add_missing,
    build_node,
    check_values,
    complete,
    declare,
    get_cfg_default,
    leaves,
    merge_tree,
    read_yaml,
)
from dassl.utils import MissingFile, Registry, UserError, brief, check_availability, get_logger

TRAINER_REGISTRY = Registry("TRAINER", built_in=("dassl.engine.da", "dassl.engine.dg", "dassl.engine.ssl"))
"""Trainer classes by `__name__`.

A member is called as `Trainer(cfg)` and derives from SimpleTrainer (see simple.py), mostly through TrainerX.
Class attributes that the engine reads: CONFIG and KEYS or `default_config()` (its own keys), `needs_checkpoint`
(False: `--eval-only` works without a trained model).
"""


def trainer_class(name):
    """The class of that name. Raises UserError with the nearest and all names."""
    check_availability(name, TRAINER_REGISTRY.registered_names(), "TRAINER.NAME")
    return TRAINER_REGISTRY.get(name)


def checked_class(cfg):
    """The class that cfg.TRAINER.NAME names. What cfg lacks of the engine's keys gets its default.

    UserError: a value that its key does not take, or that does not go with another. A class that declares no KEYS, as
    one written for Dassl, may know other names than our choices, and reads its node of cfg.TRAINER as it likes.
    """
    cls = trainer_class(complete(cfg).TRAINER.NAME)
    for node, base in config_nodes(cls):
        add_missing(cfg.TRAINER, CN({node: _defaults(base)}))
    mine, theirs = trainer_keys(cls), tuple(f"TRAINER.{node}." for node, _ in config_nodes(cls))
    engine = {n: key for n, key in KEYS.items() if not re.match(r"TRAINER\.\w+\.", n) or mine and n.startswith(theirs)}
    check_values(cfg, engine | mine, choices=bool(mine))
    if mine:
        cls.check_cfg(cls.__new__(cls), cfg)
    return cls


def build_trainer(cfg):
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


def source_of(cls):
    """A class with its file, for errors."""
    return f"{cls.__name__} ({getattr(sys.modules.get(cls.__module__), '__file__', cls.__module__)})"


def config_nodes(cls):
    """[(node below cfg.TRAINER, class that brings it)], base classes first."""
    return [(base.__dict__["CONFIG"], base) for base in reversed(cls.__mro__) if base.__dict__.get("CONFIG")]


def trainer_keys(cls):
    """{"TRAINER.NODE.KEY": Key} of what a class and its base classes declare and give a default."""
    keys = {}
    for node, base in config_nodes(cls):
        defaults = dict(leaves(_defaults(base)))
        declared = {name: key for name, key in getattr(base, "KEYS", {}).items() if defaults.get(name) == key.default}
        keys = {f"TRAINER.{node}.{name}": key for name, key in declared.items()} | keys
    return keys


def _defaults(base):
    """The keys that a trainer or a mixin brings along, as a tree."""
    return base.default_config() if hasattr(base, "default_config") else build_node(base.KEYS)


def add_trainer_nodes(cfg):
    """Give `cfg` the nodes of all registered trainers and of their base classes, in place.

    Each class that defines CONFIG brings KEYS or `default_config()` to cfg.TRAINER.<CONFIG>. Two classes may share a
    node: it gets the union of their keys, and what is there already stays.
    """
    for name in TRAINER_REGISTRY.registered_names():
        cls = TRAINER_REGISTRY.get(name)
        for node, base in config_nodes(cls):
            add_missing(cfg.TRAINER, CN({node: _defaults(base)}))
        declare(trainer_keys(cls))


def read_run_cfg(folder):
    """The config that a run folder holds -> CfgNode, not frozen, with the nodes of all registered trainers.

    It records every trainer's keys. What it says of other trainers than its own gives way to the defaults where they
    have no such key, or take no such value, any more: their code may have changed since.

    Raises:
        MissingFile: no config.yaml.
        UserError: of another trainer than the registered ones, or a key of that trainer or of the engine is unknown.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        raise MissingFile(f"{folder} is no run folder: it holds no config.yaml")
    from .recipe import check_config  # late: it looks for a trainer's keys as this module does

    tree = read_yaml(path)
    check_config(path, dict(leaves(tree)))
    trainers = tree.pop("TRAINER", None)
    name = trainers.get("NAME") if isinstance(trainers, dict) else None
    if name not in TRAINER_REGISTRY.registered_names():
        known = ", ".join(TRAINER_REGISTRY.registered_names())
        raise UserError(f"{path}: TRAINER.NAME is {brief(name)}, expected one of {known}")
    cls = TRAINER_REGISTRY.get(name)
    aliases = getattr(cls, "ALIASES", {})
    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    own = {node for node, _ in config_nodes(cls)}
    merge_tree(cfg, tree, path)
    for key, value in leaves(trainers, "TRAINER."):
        try:
            merge_tree(cfg, {key: value}, path, aliases)
        except UserError:
            if key.split(".")[1] in own or key.count(".") == 1:
                raise
    return cfg
