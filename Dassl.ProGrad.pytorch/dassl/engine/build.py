"""Trainers by name, and the config keys that they bring along."""

import os

from yacs.config import CfgNode as CN

from dassl.config import get_cfg_default, leaves, merge_tree, read_yaml
from dassl.utils import MissingFile, Registry, UserError, brief, check_availability, get_logger

TRAINER_REGISTRY = Registry("TRAINER", built_in=("dassl.engine.da", "dassl.engine.dg", "dassl.engine.ssl"))
"""Trainer classes by `__name__`.

A member is called as `Trainer(cfg)` and derives from SimpleTrainer (see simple.py), mostly through TrainerX.
Class attributes that the engine reads: CONFIG and `default_config()` (its own keys), `needs_checkpoint`
(False: `--eval-only` works without a trained model).
"""


def trainer_class(name):
    """The class of that name. Raises UserError with the nearest and all names."""
    check_availability(name, TRAINER_REGISTRY.registered_names(), "TRAINER.NAME")
    return TRAINER_REGISTRY.get(name)


def build_trainer(cfg):
    """The trainer that cfg.TRAINER.NAME names, with its data, model and evaluator built."""
    cls = trainer_class(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        get_logger().info(f"Loading trainer: {cfg.TRAINER.NAME}")
    return cls(cfg)


def add_trainer_nodes(cfg):
    """Give `cfg` the nodes of all registered trainers and of their base classes, in place.

    Each class that defines CONFIG brings `default_config()` to cfg.TRAINER.<CONFIG>. Two classes may share a
    node: it gets the union of their keys, and what is there already stays.
    """
    for name in TRAINER_REGISTRY.registered_names():
        for cls in reversed(TRAINER_REGISTRY.get(name).__mro__):
            node = cls.__dict__.get("CONFIG")
            if node:
                _add_missing(cfg.TRAINER.setdefault(node, CN()), cls.default_config())


def _add_missing(node, defaults):
    for key, value in defaults.items():
        if isinstance(value, CN):
            _add_missing(node.setdefault(key, CN()), value)
        else:
            node.setdefault(key, value)


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
    tree = read_yaml(path)
    trainers = tree.pop("TRAINER", None)
    name = trainers.get("NAME") if isinstance(trainers, dict) else None
    if name not in TRAINER_REGISTRY.registered_names():
        known = ", ".join(TRAINER_REGISTRY.registered_names())
        raise UserError(f"{path}: TRAINER.NAME is {brief(name)}, expected one of {known}")
    cls = TRAINER_REGISTRY.get(name)
    aliases = getattr(cls, "ALIASES", {})
    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    own = {base.__dict__.get("CONFIG") for base in cls.__mro__}
    merge_tree(cfg, tree, path)
    for key, value in leaves(trainers, "TRAINER."):
        try:
            merge_tree(cfg, {key: value}, path, aliases)
        except UserError:
            if key.split(".")[1] in own or key.count(".") == 1:
                raise
    return cfg
