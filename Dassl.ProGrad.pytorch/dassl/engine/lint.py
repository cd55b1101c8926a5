"""What a run changes in its recipe, the yaml files, and what of that will have no effect or makes it another run."""

import os

from dassl.config import leaves
from dassl.utils import read_json

from .build import config_nodes, trainer_class
from .results import FILE as RESULTS

# what a recipe does not say: where a run stands, its seed, how fast it goes
FREE = (
    *("OUTPUT_DIR", "DATASET.ROOT", "SEED", "RESUME", "TRAINER.NAME", "USE_CUDA", "VERBOSE", "DETERMINISTIC"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.PERSISTENT", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ"),
    *("FEATURES.DIR", "FEATURES.TEST", "FEATURES.STRICT", "MODEL.BACKBONE.PATH"),
)


def lint(recipe, cfg):
    """Lines on what differs between the config of the yaml files and the one that will run."""
    changed = changed_keys(recipe, cfg)
    nodes = own_nodes(cfg)
    lines = [f"{key}: {old!r} -> {new!r}{idle(key, nodes)}" for key, old, new in changed]
    if cfg.SEED < 0:
        lines.append("no seed: the run cannot be repeated")
    return lines + stage1_differs(cfg)


def changed_keys(recipe, cfg):
    """(key, value in the recipe, value of the run) of each difference."""
    pairs = zip(leaves(recipe), leaves(cfg), strict=True)
    return [(key, old, new) for (key, old), (_, new) in pairs if old != new and not key.startswith(FREE)]


def own_nodes(cfg):
    """Nodes of cfg.TRAINER that the run's trainer reads; empty for one in Dassl's style, which reads what it likes."""
    return {node for node, _ in config_nodes(trainer_class(cfg.TRAINER.NAME))}


def idle(key, nodes):
    """What to say of a key that no one reads."""
    parts = key.split(".")
    if parts[0] != "TRAINER" or len(parts) < 3 or not nodes or parts[1] in nodes:
        return ""
    return f" has no effect: this trainer reads TRAINER.{', TRAINER.'.join(sorted(nodes))}"


def stage1_differs(cfg):
    """Lines on what the stage-1 run that this one continues did otherwise."""
    file = os.path.join(cfg.RESUME_COOP, RESULTS)
    if not cfg.RESUME_COOP or not os.path.isfile(file):
        return []
    theirs = read_json(file)
    ours = {
        "dataset": cfg.DATASET.NAME,
        "subset": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
    }
    differ = [f"{key} {theirs[key]}, here {value}" for key, value in ours.items() if theirs.get(key, value) != value]
    return [f"stage 1 was another run: {'; '.join(differ)}"] if differ else []
