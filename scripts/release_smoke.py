"""What an installed engine must do, from an empty folder: import all of itself, train, go on, evaluate, report.

    python release_smoke.py [PACKAGE ...]     (release_check.py copies it there; imports all of dassl, or of these)

The trainer and the data set below are written as anybody's for Dassl: a linear head on the built-in CLIP.
"""

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import dassl

CLASSES = ("red", "green", "blue")
EACH = {"train_x": 4, "val": 2, "test": 4}  # pictures a class


def import_all(packages: list[str]) -> list[str]:
    """Import every module but a package's __main__; the distributions' modules that this loaded."""

    def fail(name: str) -> None:
        raise ImportError(name)

    for package in packages:
        folders = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(folders, f"{package}.", onerror=fail):
            if not found.name.endswith(".__main__"):
                importlib.import_module(found.name)
    return sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)


def register() -> None:
    """The data set and the trainer, by Dassl's names."""
    import numpy as np
    from PIL import Image
    from torch import nn
    from torch.nn import functional as F

    from dassl.clip import build_clip
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from dassl.engine import TRAINER_REGISTRY, TrainerX
    from dassl.metrics import compute_accuracy
    from dassl.optim import build_lr_scheduler, build_optimizer

    @DATASET_REGISTRY.register()
    class Colours(DatasetBase):
        def __init__(self, cfg):
            rng, parts = np.random.default_rng(0), {}
            for part, count in EACH.items():
                parts[part] = []
                for i in range(count * len(CLASSES)):
                    label = i % len(CLASSES)
                    path = Path(cfg.DATASET.ROOT, f"{part}_{i}.png")
                    path.parent.mkdir(exist_ok=True)
                    pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                    pixels[..., label] += 150
                    Image.fromarray(pixels).save(path)
                    parts[part].append(Datum(str(path), label=label, classname=CLASSES[label]))
            super().__init__(**parts)

    @TRAINER_REGISTRY.register()
    class Head(TrainerX):
        def build_model(self):
            self.clip = build_clip("tiny", device=self.device)
            self.model = nn.Linear(self.clip.dim, self.num_classes).to(self.device)
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self.register_model("head", self.model, self.optim, self.sched)

        def forward_backward(self, batch):
            images, labels = self.parse_batch_train(batch)
            logits = self.model_inference(images)
            loss = F.cross_entropy(logits, labels)
            self.model_backward_and_update(loss)
            if self.batch_idx + 1 == self.num_batches:
                self.update_lr()
            return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

        def parse_batch_train(self, batch):
            return batch["img"].to(self.device), batch["label"].to(self.device)

        def model_inference(self, images):
            return self.model(self.clip.encode_image(images).float())


def config(out: str):
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    keys = {
        "USE_CUDA": False, "SEED": 1, "OUTPUT_DIR": out, "TRAINER.NAME": "Head",
        "DATASET.NAME": "Colours", "DATASET.ROOT": "data", "INPUT.SIZE": (32, 32), "INPUT.TRANSFORMS": ("normalize",),
        "DATALOADER.NUM_WORKERS": 0, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.MAX_EPOCH": 1, "OPTIM.LR": 0.01,
        "TEST.FINAL_MODEL": "best_val",
    }  # fmt: skip
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    return cfg


def main(packages: list[str]) -> None:
    """Everything; an exception is the fault. Prints one line of JSON."""
    loaded = import_all(packages or ["dassl"])
    register()
    import torch

    from dassl.clip import build_clip
    from dassl.engine.launch import run
    from dassl.report.published import __file__ as published
    from dassl.report.results import load_results

    text = build_clip("tiny").encode_text(build_clip("tiny").tokenise([f"a {name} thing." for name in CLASSES]))
    assert text.shape[0] == len(CLASSES) and text.isfinite().all()
    trained = run(config("train"))
    tested = run(config("test"), eval_only=True, model_dir="train")
    assert tested["correct"] == trained["correct"] and tested["total"] == len(CLASSES) * EACH["test"]
    assert len(load_results("train", "test")) == 2
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in Path(published).parent.glob("*.json")]
    assert len(tables) >= 2 and all(tables)
    print(json.dumps({"file": dassl.__file__, "loaded": loaded, "torch": torch.__version__}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="whose modules are imported; default: dassl")
    main(parser.parse_args().packages)
