"""What a run changes in the defaults and in its recipe, the yaml files, and what of that will have no effect or makes
it another run."""

import textwrap
from collections.abc import Iterable

import torch
from yacs.config import CfgNode as CN

from dassl.clip.feature_bank import bank_folder
from dassl.config import leaves
from dassl.utils import brief
from dassl.utils.device import MPS, choose_device, device_name

from .config import full_config
from .recipe import changed, changed_keys, finished, is_read, own_nodes, plain

SHARED = ("DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "SEED")  # with stage 1, mostly
# said in other words, or of the machine
SAID = ("TRAINER.NAME", "DATASET.NAME", "MODEL.BACKBONE.NAME", "SEED", "OUTPUT_DIR", "DATASET.ROOT", "PRESET")


def lint(recipe: CN, cfg: CN) -> list[str]:
    """Lines on what differs between the config of the yaml files and the one that will run, and between that and the
    stage-1 run that it continues."""
    nodes, lines = own_nodes(cfg), []
    unread = f" has no effect: this trainer reads TRAINER.{', TRAINER.'.join(sorted(nodes))}"
    for key, old, new in changed_keys(recipe, cfg):
        lines.append(f"{key}: {old!r} -> {new!r}{'' if is_read(key, nodes) else unread}")
    if cfg.SEED < 0:
        lines.append("no seed: the run cannot be repeated")
    stage1 = finished(cfg.RESUME_COOP).get("recipe", {}) if cfg.RESUME_COOP else {}
    if differ := changed(stage1, {key: value for key, value in leaves(cfg) if key in SHARED and key in stage1}):
        lines.append(f"stage 1 was another run: {'; '.join(differ)}")
    return lines


def opening(cfg: CN, recipe: CN | None = None) -> str:
    """For the screen before a run begins: trainer, data, backbone, device, what differs from the defaults and from the
    recipe (the yaml files' config), and where things are written. log.txt has the whole config."""
    device = choose_device(cfg.USE_CUDA)
    where = f"the CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device_name(device)
    preset = f" ({cfg.PRESET})" if cfg.PRESET else ""
    lines = [f"{cfg.TRAINER.NAME}{preset}: {cfg.DATASET.NAME}, {cfg.MODEL.BACKBONE.NAME} on {where}, seed {cfg.SEED}"]
    lines += [MPS] if device.type == "mps" else []
    usual, nodes = dict(leaves(full_config())), own_nodes(cfg)
    read = [(key, value) for key, value in leaves(cfg) if key not in SAID and is_read(key, nodes)]
    lines += paragraph("defaults", [f"{k} {brief(value)}" for k, value in read if plain(usual.get(k)) != plain(value)])
    if recipe is not None:
        lines += paragraph("recipe", [f"{k} {brief(new)} ({brief(old)})" for k, old, new in changed_keys(recipe, cfg)])
    banks = f"; feature banks in {bank_folder(cfg)}" if cfg.FEATURES.VIEWS or cfg.FEATURES.TEST else ""
    return "\n".join([*lines, f"reads {cfg.DATASET.ROOT}", f"writes to {cfg.OUTPUT_DIR}{banks}"])


def paragraph(what: str, items: Iterable[str]) -> list[str]:
    """Ten lines at most."""
    text = f"differs from the {what}: {', '.join(items) or 'nothing'}"
    more = " ... the other keys: ** Config ** in log.txt"
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_long_words=False, max_lines=10, placeholder=more)


def counts(dataset: object) -> str:
    """How many classes and images of each part a data set has."""
    parts = {"train_x": "training", "train_u": "unlabelled", "val": "validation", "test": "test"}
    lengths = {what: len(getattr(dataset, name, None) or ()) for name, what in parts.items()}
    words = ", ".join(f"{length:,} {what}" for what, length in lengths.items() if length)
    return f"{getattr(dataset, 'num_classes', 0)} classes; images: {words}"
