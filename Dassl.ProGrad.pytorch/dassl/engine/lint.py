"""What a run changes in the defaults and in its recipe, the yaml files, and what of that will have no effect or makes
it another run."""

import shutil
import textwrap

import torch

from dassl.clip.feature_bank import bank_folder
from dassl.config import get_cfg_default, leaves
from dassl.utils import brief

from .build import add_trainer_nodes, trainer_class
from .recipe import changed_keys, finished, is_read, own_nodes, plain


def lint(recipe, cfg):
    """Lines on what differs between the config of the yaml files and the one that will run."""
    changed = changed_keys(recipe, cfg)
    nodes = own_nodes(cfg)
    unread = f" has no effect: this trainer reads TRAINER.{', TRAINER.'.join(sorted(nodes))}"
    lines = [f"{key}: {old!r} -> {new!r}{'' if is_read(key, nodes) else unread}" for key, old, new in changed]
    if cfg.SEED < 0:
        lines.append("no seed: the run cannot be repeated")
    return lines + stage1_differs(cfg)


def stage1_differs(cfg):
    """Lines on what the stage-1 run that this one continues did otherwise."""
    theirs = finished(cfg.RESUME_COOP) if cfg.RESUME_COOP else {}
    ours = {
        "dataset": cfg.DATASET.NAME,
        "subset": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
    }
    differ = [f"{key} {theirs[key]}, here {value}" for key, value in ours.items() if theirs.get(key, value) != value]
    return [f"stage 1 was another run: {'; '.join(differ)}"] if differ else []


# said in other words, or of the machine
TOLD = ("TRAINER.NAME", "DATASET.NAME", "MODEL.BACKBONE.NAME", "SEED", "OUTPUT_DIR", "DATASET.ROOT", "PRESET")
WIDTH, ROWS = 100, 10  # columns of what is printed, and lines of differences at most


def opening(cfg, recipe=None):
    """Lines for the screen before a run begins: trainer, data, backbone, device, what differs from the defaults and
    from the recipe (the yaml files' config), and where things are written. log.txt has the whole config."""
    cuda = cfg.USE_CUDA and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"the CPU, {torch.get_num_threads()} threads"
    preset = f" ({cfg.PRESET})" if cfg.PRESET else ""
    lines = [f"{cfg.TRAINER.NAME}{preset}: {cfg.DATASET.NAME}, {cfg.MODEL.BACKBONE.NAME} on {device}, seed {cfg.SEED}"]
    lines += listed("differs from the defaults:", from_defaults(cfg))
    if recipe is not None:
        changed = [f"{key} {brief(new)} ({brief(old)})" for key, old, new in changed_keys(recipe, cfg)]
        lines += listed("differs from the recipe:", changed or ["nothing"])
    banks = f"; feature banks in {bank_folder(cfg)}" if cfg.FEATURES.VIEWS or cfg.FEATURES.TEST else ""
    return "\n".join([*lines, f"reads {cfg.DATASET.ROOT}", f"writes to {cfg.OUTPUT_DIR}{banks}"])


def from_defaults(cfg):
    """["KEY value"] of what this run's trainer reads and the default is not."""
    usual, nodes = get_cfg_default(), own_nodes(cfg)
    add_trainer_nodes(usual, [trainer_class(cfg.TRAINER.NAME)])
    before = dict(leaves(usual))
    changed = [(key, value) for key, value in leaves(cfg) if key not in TOLD and is_read(key, nodes)]
    return [f"{key} {brief(value)}" for key, value in changed if plain(before.get(key)) != plain(value)]


def listed(title, items):
    """One paragraph of ROWS lines at most."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    lines = textwrap.wrap(f"{title} {', '.join(items)}", width, subsequent_indent="  ", break_long_words=False)
    return lines if len(lines) <= ROWS else [*lines[: ROWS - 1], "  ... the other keys: ** Config ** in log.txt"]


def counts(dataset):
    """How many classes and images of each part a data set has."""
    parts = {"train_x": "training", "train_u": "unlabelled", "val": "validation", "test": "test"}
    found = [f"{len(getattr(dataset, name, None) or ()):,} {what}" for name, what in parts.items()]
    return f"{getattr(dataset, 'num_classes', 0)} classes; images: {', '.join(n for n in found if n[:2] != '0 ')}"
