"""What a benchmark runs on, written to a folder: random CLIP weights, noise images, stage-1 checkpoints.

Trainers are built from it as a command line would build them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import train
from dassl.clip.openai import clip_package
from dassl.engine import build_trainer
from dassl.utils import atomic_save
from tests.fixtures.image_folders import write_pets

BREEDS = [
    "abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "bengal",
    "birman", "bombay", "boxer", "british_shorthair", "chihuahua", "egyptian_mau", "english_cocker_spaniel",
    "english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond",
    "leonberger",
]  # fmt: skip  # longest prompt: 11 of 77 tokens
TEXT = {"context_length": 77, "vocab_size": 49408}
MODELS = {
    "vit_b16": {
        "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
        "vision_patch_size": 16, "transformer_width": 512, "transformer_heads": 8, "transformer_layers": 12,
    },
    "small": {
        "embed_dim": 128, "image_resolution": 96, "vision_layers": 6, "vision_width": 192,
        "vision_patch_size": 16, "transformer_width": 128, "transformer_heads": 2, "transformer_layers": 4,
    },
    "text_b16": {  # the text tower of vit_b16; the image tower next to nothing
        "embed_dim": 512, "image_resolution": 32, "vision_layers": 1, "vision_width": 64,
        "vision_patch_size": 16, "transformer_width": 512, "transformer_heads": 8, "transformer_layers": 12,
    },
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Sizes and places. batch: images a training step; test_batch: images a test batch; names: else breeds."""

    folder: Path
    model: str = "small"
    batch: int = 32
    classes: int = 20
    test_batch: int = 100
    names: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        return self.folder / "clip.pt"

    @property
    def data(self) -> Path:
        return self.folder / f"data_{self.batch}_{self.classes}"

    def write(self) -> "World":
        """The weights once a folder, images for each batch size and number of classes."""
        if not self.weights.exists():
            write_weights(self.weights, MODELS[self.model])
        per_class = -(-self.batch // self.classes), 1, -(-self.test_batch // self.classes)
        write_pets(self.data, classes=self.names or class_names(self.classes), counts=per_class)
        return self

    def stage1(self, model_name: str, state_dict: Callable[[], dict[str, torch.Tensor]]) -> Path:
        """A stage-1 run folder with the checkpoint of `model_name`, written on first use."""
        folder = self.folder / "stage1" / model_name
        if not folder.exists():
            atomic_save({"state_dict": state_dict(), "epoch": 1}, folder / "model.pth.tar-1")
        return folder.parent

    def arguments(self, trainer: str, config: str, stage1: Path | str = "", **keys: object) -> list[str]:
        """Arguments of train.py; config below configs/trainers, keys such as FEATURES__VIEWS=1."""
        side = MODELS[self.model]["image_resolution"]
        fixed = {
            "MODEL.BACKBONE.NAME": self.weights,
            "INPUT.SIZE": (side, side),
            "DATASET.NUM_SHOTS": -(-self.batch // self.classes),
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.TRAIN_X.BATCH_SIZE": self.batch,
            "DATALOADER.TEST.BATCH_SIZE": self.test_batch,
            "FEATURES.DIR": self.folder / "features",
            "USE_CUDA": False,
        }
        pairs = fixed | {key.replace("__", "."): value for key, value in keys.items()}
        flags = {
            "--root": self.data,
            "--output-dir": self.folder / "run",
            "--resume-coop": stage1,
            "--seed": 1,
            "--trainer": trainer,
            "--dataset-config-file": train.ROOT / "configs/datasets/oxford_pets.yaml",
            "--config-file": train.ROOT / f"configs/trainers/{config}.yaml",
        }
        return [str(part) for group in (flags, pairs) for item in group.items() for part in item]

    def trainer(self, name: str, config: str, stage1: Path | str = "", **keys: object):
        """A trainer of ours in the middle of an epoch."""
        line = self.arguments(name, config, stage1, **keys)
        trainer = build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(line)))
        trainer.set_model_mode("train")
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1_000_000
        return trainer


def class_names(count: int) -> list[str]:
    """Breeds, and beyond twenty the same with a number."""
    return [BREEDS[i % 20] + (f"_{i // 20 + 1}" if i >= 20 else "") for i in range(count)]


def write_weights(path: Path, sizes: dict[str, int]) -> None:
    """A CLIP as the clip package initialises it, logits scaled as in the published weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = clip_package().model.CLIP(**TEXT, **sizes)
    module.logit_scale.data.fill_(100.0).log_()
    atomic_save(module.state_dict(), path)


def first_batch(loader) -> dict:
    """The first training batch: the same images for pixels and bank."""
    torch.manual_seed(1)
    return next(iter(loader))
