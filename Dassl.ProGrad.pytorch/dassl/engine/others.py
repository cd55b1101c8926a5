"""What is at stake: a model that was trained on one data set, scored on all classes of others.

TEST.OTHERS names them, and results.json of an evaluation on new classes keeps what came of it, in the entry `others`.
Each is an evaluation as any other: the model's own trainer is built for the other classes, loads the weights and tests.
A model without a prompt of its own has `WORDS` there, whatever the data set's template.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from yacs.config import CfgNode as CN

from dassl.config import KEYS, leaves, read_yaml, with_values
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, digest, get_logger, quiet
from dassl.utils.distributed import main_process_first

from .build import trainer_class
from .recipe import metadata_of
from .state import rng_state, set_rng_state, stop_workers
from .trainer import SimpleTrainer

AUTO, WORDS = "auto", "a photo of a {}."
log = get_logger()
_DATA: dict[str, DataManager] = {}  # of this process: a main job scores the same sets some hundred times


def names_of(value: str | list[str]) -> list[str]:
    """The names that a value of TEST.OTHERS has."""
    return [value] if isinstance(value, str) else list(value)


def asked(cfg: CN) -> list[str]:
    """What an evaluation of this config takes of TEST.OTHERS."""
    return names_of(cfg.TEST.OTHERS) if cfg.DATASET.SUBSAMPLE_CLASSES == "new" else []


def lacks(results: dict, names: list[str]) -> bool:
    """Has an evaluation, or a path card, not been asked for all of these names yet? `auto` is what was there then."""
    before = results.get("others", {}).get("asked", [])
    return not all(isinstance(before, list) and name in before for name in names)


def other_sets(cfg: CN) -> dict[str, CN]:
    """{DATASET.NAME: config on all classes} of the sets that TEST.OTHERS names, beside the config's own.

    MissingFile for one that is not below DATASET.ROOT; `auto` passes it over, in a line. UserError for an unknown name.
    """
    name, sets = cfg.DATASET.NAME, {}  # by the place of their file
    files_of: Callable[[str], list[Path]] = getattr(DATASET_REGISTRY.get(name), "others", lambda word: [])
    files = [(word, file) for word in asked(cfg) for file in files_of(word)]
    if asked(cfg) and not files:
        raise UserError(f"TEST.OTHERS: the data set {name} knows no others by their names")
    with main_process_first():  # a data set may be drawn
        for place in _in_turn(cfg, range(len(files))):
            word, file = files[place]
            other = _config(cfg, file)
            try:
                if name != other.DATASET.NAME:
                    other_data(other)
                    sets[place] = other
            except MissingFile as error:
                if word != AUTO:
                    raise MissingFile(f"TEST.OTHERS {word}: {error}") from None
                log.info(f"others: without {file.stem}: {error}")
    return {sets[place].DATASET.NAME: sets[place] for place in sorted(sets)}


def _in_turn(cfg, items):
    """An order of the run's own: runs side by side seldom wait for what another one draws or encodes just then."""
    return sorted(items, key=lambda item: digest(cfg.DATASET.NAME, cfg.SEED, item))


def _config(cfg: CN, file: Path) -> CN:
    """A config with the data set of a yaml file, all classes; one image of each stands for the training images."""
    values = {key: value.default for key, value in KEYS.items() if key.startswith("DATASET.")}
    values |= dict(leaves({"DATASET": read_yaml(file)["DATASET"]}))
    values |= {"DATASET.ROOT": cfg.DATASET.ROOT, "DATASET.NUM_SHOTS": 1, "DATASET.FEWER_SHOTS": "take"}
    values |= {f"TEST.{key}": False for key in ("PER_CLASS_RESULT", "COMPUTE_CMAT")}
    return with_values(cfg, values | {"TEST.SPLIT": "test", "VERBOSE": False}, str(file))


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """What happens in here is not logged, warnings apart, and draws from no stream of the run."""
    state = rng_state()
    try:
        with quiet(logging.WARNING):
            yield
    finally:
        set_rng_state(state)


def other_data(cfg: CN) -> DataManager:
    """The data of a config of `other_sets`, once in a process; its templates are WORDS."""
    key = repr([dict(leaves(node)) for node in (cfg.DATASET, cfg.INPUT, cfg.DATALOADER)] + [cfg.USE_CUDA])
    if key not in _DATA or not os.path.exists(_DATA[key].dataset.test[0].file):  # gone since: said as the first time
        with _aside():
            data = DataManager(cfg)
        data.dataset.templates = dict.fromkeys(getattr(data.dataset, "templates", ()), WORDS)
        with contextlib.suppress(AttributeError):  # where it follows from the templates
            data.dataset.template = WORDS
        _DATA[key] = data
    return _DATA[key]


def build_other(cfg: CN) -> SimpleTrainer:
    """The trainer of a config of `other_sets`, untrained, with its data."""
    cls, data = trainer_class(cfg.TRAINER.NAME), other_data(cfg)
    members = {"build_data_manager": lambda self: data, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), members)(cfg)


def score_others(
    trainer: SimpleTrainer, sets: dict[str, CN], folder: str = "", epoch: int | None = None, results: dict | None = None
) -> dict:
    """The entry `others`: correct, total, words and split of each set, by the model in `folder` (none: untrained).

    results: what an earlier evaluation of the same model says, whose sets are not scored again.
    """
    before = (results or {}).get("others", {})
    if not all(isinstance(before.get(key), kind) for key, kind in (("asked", list), ("sets", dict))):
        before = {"asked": [], "sets": {}}
    entry = {"asked": list(dict.fromkeys([*before["asked"], *asked(trainer.cfg)]))}
    if reason := getattr(trainer, "bound_to_classes", ""):
        return entry | {"bound": reason, "sets": {}}
    left = [name for name in sets if name not in before["sets"]]
    rows = {name: _score(sets[name], folder, epoch) for name in _in_turn(trainer.cfg, left)}
    return entry | {"sets": before["sets"] | {name: rows[name] for name in left}}


def _score(cfg: CN, folder: str, epoch: int | None) -> dict:
    with _aside():
        other = build_other(cfg)
        try:
            other.load_model(folder, epoch=epoch)
            accuracy = other.test()
        finally:
            other.close_writer()
            stop_workers(other)
    log.info(f"others: {cfg.DATASET.NAME} {accuracy:.2f} %")
    dataset = other_data(cfg).dataset
    row = {name: getattr(other.evaluator, name, None) for name in ("correct", "total")}
    row["template"] = metadata_of(other).get("templates", getattr(dataset, "template", None))
    return row | {"split_digest": getattr(dataset, "split_digest", None)}
