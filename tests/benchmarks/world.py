"""What a benchmark runs on, written to a folder: random CLIP weights, noise pictures, a stage-1 checkpoint.

Trainers are built from it as a command line would build them.
"""

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
}  # fmt: skip
N_CTX = 4
CONFIGS = {"CoOp": "CoOp/vit_b16_ep100_ctxv1", "CoOp_LMC": "CoOp_LMC/released"}


@dataclass(frozen=True)
class World:
    """Sizes and places. batch: images a training step; test_batch: images a test batch."""

    folder: Path
    model: str = "small"
    batch: int = 32
    classes: int = 20
    test_batch: int = 100

    @property
    def weights(self) -> Path:
        return self.folder / "clip.pt"

    @property
    def contexts(self) -> dict[str, torch.Tensor]:
        """stage1: w2; start: where stage 2 is timed. Apart, or the path loss would be the plain one."""
        g = torch.Generator().manual_seed(1)
        width = MODELS[self.model]["transformer_width"]
        stage1, step = (0.02 * torch.randn(N_CTX, width, generator=g) for _ in range(2))  # size of embeddings
        return {"stage1": stage1, "start": stage1 + step}

    def write(self) -> "World":
        write_weights(self.weights, MODELS[self.model])
        per_class = -(-self.batch // self.classes), 1, -(-self.test_batch // self.classes)
        write_pets(self.folder / "data", classes=class_names(self.classes), counts=per_class)
        state = {"state_dict": {"ctx": self.contexts["stage1"]}, "epoch": 1}
        atomic_save(state, self.folder / "stage1" / "prompt_learner" / "model.pth.tar-1")
        return self

    def arguments(self, trainer: str, **keys: object) -> list[str]:
        """Arguments of train.py; keys such as FEATURES__VIEWS=1."""
        side = MODELS[self.model]["image_resolution"]
        fixed = {
            "MODEL.BACKBONE.NAME": self.weights,
            "INPUT.SIZE": (side, side),
            "TRAINER.COOP.PREC": "fp32",
            "DATASET.NUM_SHOTS": -(-self.batch // self.classes),
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.TRAIN_X.BATCH_SIZE": self.batch,
            "DATALOADER.TEST.BATCH_SIZE": self.test_batch,
            "FEATURES.DIR": self.folder / "features",
            "USE_CUDA": False,
        }
        pairs = fixed | {key.replace("__", "."): value for key, value in keys.items()}
        flags = {
            "--root": self.folder / "data",
            "--output-dir": self.folder / "run",
            "--resume-coop": self.folder / "stage1",
            "--seed": 1,
            "--trainer": trainer,
            "--dataset-config-file": train.ROOT / "configs/datasets/oxford_pets.yaml",
            "--config-file": train.ROOT / f"configs/trainers/{CONFIGS[trainer]}.yaml",
        }
        return [str(part) for group in (flags, pairs) for item in group.items() for part in item]

    def trainer(self, name: str, **keys: object):
        """A trainer of ours in the middle of an epoch, its context at `start`."""
        cfg = train.setup_cfg(train.build_parser().parse_intermixed_args(self.arguments(name, **keys)))
        trainer = build_trainer(cfg)
        with torch.no_grad():
            trainer.model.ctx.copy_(self.contexts["start"])
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
