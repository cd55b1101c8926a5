"""Images through a finished run, without its data set: `python -m mergetune.predict RUN image.jpg`.

    from mergetune.predict import Predictor
    model = Predictor("output/run")
    for label, probability in model(["cat.jpg"])[0]:
        ...

Letters: B images, C classes, D joint width.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

from dassl.utils import ArgumentParser, MissingFile, UserError, brief, command_parser, get_logger, one_line, quiet
from dassl.utils.files import atomic_write, read_json
from dassl.utils.images import IMAGE_SUFFIXES
from dassl.utils.progress import progress
from dassl.utils.torchrun import run_command

EPILOG = """\
RUN is the folder of a training run, an imported or merged one, or of a zero-shot evaluation; or a model's folder or a
checkpoint within it. Images are prepared as the run prepared its test images. A run with class-specific prompts or a
trained head knows its own classes only. A session of ConDU is no model of its own: see train.py --eval-only.

Of a folder all images are taken, those in folders below it too; other files are named on stderr. Where an image cannot
be read, the others are answered, and the command ends with an error that names it; --json has {image, error} for it.

--export writes the class embeddings as safetensors: "class_embeddings" (C, D) fp32, of unit norm (a trained head: as
it is), and in the metadata the class names, the backbone with its digest, and logit_scale. Where the image tower is
the backbone's own, logits are logit_scale x unit-norm image features x embeddings.

examples:
  python -m mergetune.predict output/run cat.jpg folder_of_dogs --top 3
  python -m mergetune.predict output/run cat.jpg --classes "cat,dog,great white shark" --json
  python -m mergetune.predict output/run --export classes.safetensors
"""


def build_parser() -> ArgumentParser:
    """The flags."""
    about = "Print the likeliest labels of images by a finished run; no data set is needed."
    parser = command_parser("mergetune.predict", about, EPILOG, ("--set",))
    add = parser.add_argument
    add("run", type="path", metavar="RUN", help="folder of a finished run")
    add("images", type="path", nargs="*", metavar="IMAGE", help="images, or folders of them")
    add("--classes", default="", metavar="A,B,C", help="other class names; default: the run's")
    add("--top", type=int, default=5, help="labels an image (default 5)")
    add("--export", type="path", default="", metavar="FILE", help="write the class embeddings as safetensors")
    add("--json", action="store_true", help="JSON on stdout: [{image, labels: [{label, probability}, ...]}, ...]")
    return parser


if __name__ == "__main__":  # --help and a wrong line need no PyTorch
    run_command(build_parser().parse_intermixed_args)

import torch
from safetensors.torch import save
from torch import Tensor

from dassl.config import with_values
from dassl.data import DatasetWrapper, transforms
from dassl.data.datasets import Datum
from dassl.engine import load_config, trainer_class
from dassl.engine.recipe import begun_from, unfinished
from dassl.engine.results import CLASSES, run_classes, run_file
from mergetune.stage1 import check_begun_from

log = get_logger()


def read_cfg(run: Path, pairs: Sequence[str] = ()):
    """The config of a run folder, ready for a trainer that only predicts. pairs: KEY, VALUE, ... of what has moved."""
    cfg = load_config(run, {"VERBOSE": False, "OUTPUT_DIR": str(run)}, pairs=pairs)
    cls = trainer_class(cfg.TRAINER.NAME)
    if cls.needs_checkpoint:  # the run's weights hold all that these gave
        cfg = with_values(cfg, {"RESUME_COOP": "", "MODEL.INIT_WEIGHTS": ""})
    check_begun_from(run, cfg)
    return cfg, cls


def read_classes(run: Path, classes: Sequence[str]) -> SimpleNamespace:
    """The run's classes and templates, with other class names if some are given."""
    path, trained = run / CLASSES, run_classes(run)  # which refuses those of another run
    names = list(classes) or trained
    if not names:
        why = f"no {CLASSES} with class names, which a run writes when it is finished"
        raise MissingFile(f"{run} has {why}: name them with --classes, in the order of their labels")
    if not all(map(str.strip, names)):
        raise UserError(f"class names are {brief(names)}, expected a list of names")
    if twice := [name for name in dict.fromkeys(classes) if names.count(name) > 1]:
        raise UserError(f"--classes names {', '.join(twice)} more than once")
    facts, kinds = read_json(path) if trained else {}, {"template": str, "templates": dict}
    facts = {key: facts[key] for key, kind in kinds.items() if isinstance(facts.get(key), kind)}
    return SimpleNamespace(classnames=names, trained=trained, **facts)


class Predictor:
    """A finished run as a function of image files.

    run: its folder, or below it a model's folder or one checkpoint.
    classes: other class names; default the run's. UserError where the model knows only its own.
    pairs: KEY, VALUE, ... of what has moved since.
    Attribute unfinished: how far the training is that has not ended, of the run or of what it began from; or "".
    """

    def __init__(self, run: str | Path, classes: Sequence[str] = (), pairs: Sequence[str] = ()):
        weights = Path(run)
        run = (run_file(weights, "config.yaml") or weights / "config.yaml").parent
        cfg, cls = read_cfg(run, pairs)
        data = read_classes(run, classes)
        loaders = dict.fromkeys(("train_loader_x", "train_loader_u", "val_loader", "test_loader"))
        sizes = {"num_classes": len(data.classnames), "num_source_domains": 0}
        manager = SimpleNamespace(dataset=data, lab2cname=dict(enumerate(data.classnames)), **sizes, **loaders)
        # nothing is trained; schedules want a number of steps
        members = {"build_data_manager": lambda self: manager, "steps_per_epoch": 1}
        with torch.random.fork_rng():  # initial weights are drawn, and then loaded
            try:
                self.trainer = type(cls.__name__, (cls,), members)(cfg)
            except AttributeError as error:  # an expert of ConDU, another trainer that asks for more
                what = f"{run}: {cls.__name__} cannot be built without its data set ({error})"
                raise UserError(f"{what}: evaluate it by train.py --eval-only") from error
        outputs = "" if hasattr(cls, "class_vectors") else "its classifier has one output a class"
        reason = getattr(self.trainer, "bound_to_classes", outputs)
        if reason and data.trained and data.classnames != data.trained:
            raise UserError(f"{run} knows only its own {len(data.trained)} classes: {reason}")
        if cls.needs_checkpoint:
            self.trainer.load_model(str(weights))
        epochs = self.trainer._loaded and self.trainer._loaded[1]
        self.unfinished = "; ".join(filter(None, [unfinished(run, epochs), begun_from(cfg)]))
        self.trainer.set_model_mode("eval")
        self._held = getattr(self.trainer, "cached_classifier", nullcontext)()
        self._held.__enter__()  # for good: one pass of the text tower serves all images
        self.cfg, self.classnames = cfg, data.classnames
        self.transform = transforms.build_transform(cfg, is_train=False)

    def __call__(
        self, images: Sequence[str | Path], top: int = 5, broken: dict[str, str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """The `top` likeliest (label, probability) of each image, best first. broken: see `logits`."""
        ranked = self.logits(images, broken).softmax(1).sort(dim=1, descending=True, stable=True)
        rows = zip(ranked.indices[:, :top].tolist(), ranked.values[:, :top].tolist(), strict=True)
        return [[(self.classnames[i], p) for i, p in zip(*row, strict=True)] for row in rows]

    def logits(self, images: Sequence[str | Path], broken: dict[str, str] | None = None) -> Tensor:
        """(B, C) fp32 on the CPU. MissingFile or UserError names an image that cannot be read.

        broken: takes such images with the reason, and they have no row.
        """
        items = [Datum(str(path)) for path in images]
        dataset, size = DatasetWrapper(self.cfg, items, transform=self.transform), self.cfg.DATALOADER.TEST.BATCH_SIZE
        rows = [torch.empty(0, len(self.classnames))]
        for start in progress(range(0, len(items), size), "images"):
            batch = []
            for i in range(start, min(start + size, len(items))):
                try:
                    batch.append(dataset[i]["img"])
                except UserError as error:
                    if broken is None:
                        raise
                    broken[items[i].impath] = str(error)
            if batch:
                label = torch.zeros(len(batch), dtype=torch.long)
                pixels, _ = self.trainer.parse_batch_test({"img": torch.stack(batch), "label": label})
                with torch.no_grad():
                    rows.append(self.trainer.model_inference(pixels).float().cpu())
        return torch.cat(rows)

    def class_embeddings(self) -> Tensor:
        """(C, D) fp32 on the CPU: of unit norm, but a trained head as it is. UserError where there are none."""
        if not hasattr(self.trainer, "class_vectors"):
            raise UserError(f"{self.cfg.TRAINER.NAME} has no class embeddings to export: its classifier is a network's")

        with torch.no_grad(), self.trainer.precision.autocast():
            vectors = self.trainer.class_vectors().float().cpu()
        return vectors if hasattr(self.trainer, "head_key") else torch.nn.functional.normalize(vectors, dim=-1)

    def export(self, path: str | Path) -> None:
        """Class embeddings as safetensors, see the command's help."""
        vectors, trainer, facts = self.class_embeddings().contiguous(), self.trainer, self.trainer.metadata()
        metadata = {
            "classnames": json.dumps(self.classnames),
            "trainer": self.cfg.TRAINER.NAME,
            "backbone": facts["backbone"]["name"],
            "backbone_digest": facts["backbone"]["digest"],
            "preprocess": json.dumps(facts["backbone"]["preprocess"]),
            "logit_scale": "1.0" if hasattr(trainer, "head_key") else repr(trainer.clip.logit_scale.item()),
            **({"unfinished": self.unfinished} if self.unfinished else {}),
            "image_tower": "the backbone's own" if trainer.frozen_image_tower else "changed in training",
        }
        with atomic_write(str(path)) as file:
            file.write(save({"class_embeddings": vectors}, metadata))


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images among files and in folders, and what else is in the folders. MissingFile: there is none."""

    def fail(error: OSError) -> None:
        raise error

    images, others = [], []
    for path in paths:
        if not os.path.exists(path):
            raise MissingFile(f"No image at {path}")
        images += [] if os.path.isdir(path) else [path]
        for folder, folders, names in os.walk(path, onerror=fail) if os.path.isdir(path) else ():
            folders.sort()
            for name in sorted(names):
                is_image = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
                (images if is_image else others).append(os.path.join(folder, name))
    if paths and not images:
        raise MissingFile(f"No image in {', '.join(paths)}, but {_counted(others, 'other file')}")
    return list(dict.fromkeys(images)), others


def _counted(files: list[str], what: str) -> str:
    names = ", ".join([*files[:3], *(["..."] if len(files) > 3 else [])])
    return f"{len(files)} {what}{'' if len(files) == 1 else 's'}" + (f" ({names})" if files else "")


def main(argv: list[str] | None = None) -> None:
    """One command line."""
    args = build_parser().parse_intermixed_args(argv)
    if not args.images and not args.export:
        raise UserError("Nothing to do: name images, or --export FILE")
    if args.top < 1:
        raise UserError(f"--top is {args.top}, expected at least 1")
    images, others = find_images(args.images)  # before a model is loaded
    if others:
        sys.stderr.write(f"Left out: {_counted(others, 'file')}, by name no image\n")
    broken: dict[str, str] = {}
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    with quiet():
        model = Predictor(args.run, classes, args.pairs)
        if model.unfinished:
            sys.stderr.write(f"{args.run}: {model.unfinished}\n")
        ranks = model(images, args.top, broken)
    ranked = zip([path for path in images if path not in broken], ranks, strict=True)
    if args.json:
        answers = [{"image": path, "labels": [{"label": label, "probability": p} for label, p in labels]}
                   for path, labels in ranked]  # fmt: skip
        answers += [{"image": path, "error": reason} for path, reason in broken.items()]
        log.info(json.dumps(answers, indent=2))
    else:
        for path, labels in ranked:
            log.info("\n".join(map(one_line, [path, *(f"  {p:6.1%}  {label}" for label, p in labels)])))
    if args.export:
        model.export(args.export)
        if not args.json:
            log.info(f"Wrote {args.export}: {len(model.classnames)} class embeddings")
    if broken:
        raise UserError(f"{len(broken)} of {len(images)} images cannot be read: {'; '.join(broken.values())}")


if __name__ == "__main__":
    run_command(main)
