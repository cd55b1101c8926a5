"""The config of a run: of a command line's files, flags and pairs, or of the folder of a run that there is."""

import functools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode as CN

from dassl.config import get_cfg_default, leaves, merge_pairs, merge_tree, merge_yaml, read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, brief, check_availability

from .build import TRAINER_REGISTRY, add_trainer_nodes, config_nodes, trainer_class


def full_config() -> CN:
    """The default config with the keys of all trainers."""
    return _full_config(tuple(map(TRAINER_REGISTRY.get, TRAINER_REGISTRY))).clone()


@functools.lru_cache(maxsize=1)
def _full_config(trainers: tuple[type, ...]) -> CN:
    """Of these; a main job asks some hundred times."""
    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    return cfg


def build_config(
    *,
    dataset_file: str | Path = "",
    config_file: str | Path = "",
    flags: Mapping[str, object] | None = None,
    pairs: Sequence[str] = (),
) -> tuple[CN, CN]:
    """The frozen config of a run, and that of its yaml files alone (the recipe).

    Later wins: defaults, data-set yaml, method yaml, the former's `_FINAL_` section, flags ({key: value}), pairs (KEY,
    VALUE, ... as typed), those of EXTRA_OPTS. Old names of a trainer's keys are known where a flag names the trainer.
    UserError for an unknown key, trainer or data set, or a value that its key does not take.
    """
    cfg, flags, final = full_config(), flags or {}, {}
    aliases: Mapping[str, str] = {}
    if trainer := flags.get("TRAINER.NAME"):
        check_availability(trainer, TRAINER_REGISTRY, "--trainer")
        aliases = getattr(TRAINER_REGISTRY.get(trainer), "ALIASES", {})
    if dataset_file:
        final = merge_yaml(cfg, dataset_file, aliases)
    named = cfg.DATASET.NAME
    if config_file:
        merge_yaml(cfg, config_file, aliases)
        if cfg.DATASET.NAME and dataset_file and not named:
            raise UserError(
                f"--config-file {config_file} names a data set, --dataset-config-file {dataset_file} "
                "none: are they swapped?"
            )
    merge_tree(cfg, final, str(dataset_file), aliases)
    recipe = cfg.clone()
    merge_tree(cfg, flags, "command line")
    merge_pairs(cfg, list(pairs), aliases)
    merge_pairs(cfg, extra_opts(), aliases)
    if cfg.DATASET.NAME:
        check_availability(cfg.DATASET.NAME, DATASET_REGISTRY, "DATASET.NAME")
    if not cfg.TRAINER.NAME:
        raise UserError(f"No trainer: give --trainer, one of {', '.join(TRAINER_REGISTRY)}")
    if config_file:
        cfg.PRESET = preset_name(recipe, cfg)
    cfg.freeze()
    return cfg, recipe


def extra_opts() -> list[str]:
    """KEY VALUE pairs of the environment variable EXTRA_OPTS, as if typed behind all others of each train.py line.
    UserError for quotes that do not close."""
    text = os.environ.get("EXTRA_OPTS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"EXTRA_OPTS is {text!r}: {error}") from error


def preset_name(recipe: CN, cfg: CN) -> str:
    """The preset's name, with the keys that a command line changed, so no table calls it the recipe."""
    from .recipe import changed_keys, is_read, own_nodes, role  # late, as below: --help needs no torch
    from .results import with_changes

    # precision and protocol results.json says by itself, as it does how a model is evaluated; a folder is no value
    nodes, named = own_nodes(cfg), ("TRAINER.", "OPTIM.", "MODEL.INIT_WEIGHTS", "TEST.SKIP_WARMUP")
    changed = [key for key, _, _ in changed_keys(recipe, cfg) if key.startswith(named) and is_read(key, nodes)]
    said = ("PREC", "TRAINER.MODAL", "_DIR", *getattr(trainer_class(cfg.TRAINER.NAME), "unnamed_keys", ()))
    return with_changes(cfg.PRESET, [k for k in changed if role(k) != "evaluation" and not k.endswith(said)])


def load_config(
    folder: str | Path, changes: Mapping[str, object] | None = None, root: str = "", pairs: Sequence[str] = ()
) -> CN:
    """The frozen config of a run folder, with other values of some keys. root: where the data sets lie, if they have
    moved; pairs: KEY, VALUE, ... as typed. UserError as `read_run_cfg`."""
    cfg = read_run_cfg(folder)
    merge_tree(cfg, {**(changes or {}), **({"DATASET.ROOT": os.path.abspath(root)} if root else {})}, "a command")
    merge_pairs(cfg, list(pairs))
    cfg.freeze()
    return cfg


def read_run_cfg(folder: str | Path) -> CN:
    """The config that a run folder holds, not frozen, with the nodes of all registered trainers.

    It records every trainer's keys. What it says of other trainers than its own gives way to the defaults where they
    have no such key, or take no such value, any more: their code may have changed since.
    MissingFile: no config.yaml. UserError: of another trainer than the registered ones, or a key of that trainer or of
    the engine is unknown.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        raise MissingFile(f"{folder} is no run folder: it holds no config.yaml")
    from .recipe import check_config

    tree = read_yaml(path)
    check_config(path, dict(leaves(tree)))
    trainers = tree.pop("TRAINER", None)
    name = trainers.get("NAME") if isinstance(trainers, dict) else None
    if not isinstance(name, str) or name not in TRAINER_REGISTRY:
        raise UserError(f"{path}: TRAINER.NAME is {brief(name)}, expected one of {', '.join(TRAINER_REGISTRY)}")
    cls, cfg = TRAINER_REGISTRY.get(name), full_config()
    nodes = {node for node, _ in config_nodes(cls)}
    merge_tree(cfg, tree, path)
    for key, value in leaves(trainers, "TRAINER."):
        try:
            merge_tree(cfg, {key: value}, path, getattr(cls, "ALIASES", {}))
        except UserError:
            if key.split(".")[1] in nodes or key.count(".") == 1:
                raise
    return cfg
