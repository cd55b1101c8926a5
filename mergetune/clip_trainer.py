"""What all trainers on a frozen CLIP share: the loaded backbone, image features, evaluation, facts.

The image tower gives the same features every time, so they come from the feature bank when FEATURES says
so, and from the tower otherwise. The text tower runs once per evaluation.
Letters: B images, C classes, D joint width.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, check_input, compiled, cosine_logits
from dassl.clip.feature_bank import BankDataset, build_feature_loader
from dassl.engine import TrainerX
from dassl.engine.results import classes_fact, images_seen
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, brief, get_logger, load_pretrained_weights
from dassl.utils.moved import old_names
from mergetune.stage1 import check_backbone, data_seen, find_checkpoint, used_keys
from mergetune.stage2 import trainable


class ClipTrainer(TrainerX):
    """Base class. A subclass gives `build_trained` (what trains) and `text_features() -> (C, D)` raw."""

    label: str  # what tables call it, where that is not its registered name; a subclass has its own
    model_name = "model"  # the checkpoint's folder
    frozen_image_tower = True
    template_family = ""  # whose zero-shot template, where a data set has several
    _classifier: Tensor | None = None  # class vectors, held while one evaluation runs
    learns_prompts = False  # `templates` say what training started from

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        if (views := cfg.DATALOADER.K_TRANSFORMS) > 1 and type(self).parse_batch_train is ClipTrainer.parse_batch_train:
            raise UserError(f"DATALOADER.K_TRANSFORMS is {views}, expected 1: a batch holds one view of an image")
        if cfg.MODEL.INIT_WEIGHTS and cfg.RESUME_COOP:
            raise UserError("MODEL.INIT_WEIGHTS and RESUME_COOP both say where training starts: give one of them")
        if cfg.RESUME_COOP and not hasattr(self, "set_endpoints"):
            get_logger().warning(f"RESUME_COOP (--resume-coop) is not used: {cfg.TRAINER.NAME} continues no stage 1")

    @property
    def classnames(self) -> list[str]:
        """Names of the run's classes, by label."""
        return self.dm.dataset.classnames

    @property
    def template(self) -> str:
        """The data set's own zero-shot template; of the family asked for, where it has one."""
        usual = getattr(self.dm.dataset, "template", "a photo of a {}.")
        return getattr(self.dm.dataset, "templates", {}).get(self.template_family, usual)

    def build_model(self) -> None:
        """Load CLIP, build what trains beside it, and register that."""
        self.build_backbone()
        self.model = self.build_trained().to(self.device)
        if self.cfg.MODEL.INIT_WEIGHTS:
            self.init_weights()
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM, self.steps_per_epoch)
        self.register_model(self.model_name, self.model, self.optim, self.sched)

    def init_weights(self) -> None:
        """Start from MODEL.INIT_WEIGHTS, a file or a run folder, as far as it fits. UserError if nothing does."""
        file = find_checkpoint(self.cfg.MODEL.INIT_WEIGHTS, self.model_name)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Cannot load")
            try:
                load_pretrained_weights(self.model, str(file))
            except UserWarning as error:
                known = [f"{name} {tuple(value.shape)}" for name, value in trainable(self.model).items()]
                raise UserError(f"MODEL.INIT_WEIGHTS: {error}, which has {', '.join(known[:8])}") from None

    def build_trained(self) -> nn.Module:
        """Hook: the module that trains, from `self.clip`; its state dict is what gets saved."""
        raise NotImplementedError

    def build_backbone(self) -> None:
        """Load CLIP, frozen; shared by the runs of one process. UserError: classes without names, for prompts."""
        if not all(map(str.strip, self.classnames)):
            raise UserError(f"{self.cfg.TRAINER.NAME} needs class names, the data set gives {brief(self.classnames)}")
        half = "fp16" if self.precision.dtype == torch.float16 else "fp32"
        self.clip = build_clip_from_cfg(self.cfg, half, device=self.device, cached=True)
        check_input(self.cfg, self.clip)

    def use_feature_bank(self, name: str, *, is_train: bool) -> None:
        """Let a loader give features from the bank, where FEATURES says so and the tower is frozen.

        Only when it is first used: an evaluation needs no training views.
        """
        loader = getattr(self, name)
        if self.frozen_image_tower and not isinstance(loader.dataset, BankDataset):
            words = {"is_train": is_train, "autocast": self.precision.autocast}
            setattr(self, name, build_feature_loader(self.cfg, loader, self.clip, **words))

    def use_feature_bank_for(self, split: str) -> None:
        """The same for the loader that evaluates "val" or "test"."""
        validates = split == "val" and self.val_loader is not None
        self.use_feature_bank("val_loader" if validates else "test_loader", is_train=False)

    def before_train(self) -> None:
        super().before_train()
        if self.start_epoch < self.max_epoch:
            self.use_feature_bank("train_loader_x", is_train=True)
        # all banks now: an image that cannot be read stops the run before training, not after
        if not self.cfg.TEST.NO_TEST:
            self.use_feature_bank_for(self.cfg.TEST.SPLIT)
        if self.chooses_best() and self.has_validation():
            self.use_feature_bank_for("val")

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        if directory:
            check_backbone(Path(directory), self.metadata())

    def _load_weights(self, name: str, path: str, state: dict[str, Tensor]) -> None:
        super()._load_weights(name, path, self.fit_classes(path, used_keys(path, state)))

    def fit_classes(self, path: str | Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hook: what of a checkpoint's state belongs to this run's classes; most methods store nothing a class."""
        return state

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), or bank features (B, D), and labels (B,)."""
        images = batch["feature"] if "feature" in batch else batch["img"]
        return images.to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    parse_batch_test = parse_batch_train

    def raw_features(self, images: Tensor) -> Tensor:
        """What the frozen tower gives (B, D) of images (B, 3, H, W); what comes from the bank is that already."""
        with torch.no_grad(), self.precision.autocast():
            return images if images.dim() == 2 else self.clip.encode_image(images)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, D) of images (B, 3, H, W), or of raw features (B, D)."""
        with torch.no_grad(), self.precision.autocast():
            return F.normalize(self.raw_features(images).float(), dim=-1)

    def text_features(self) -> Tensor:
        """Raw class vectors (C, D)."""
        raise NotImplementedError

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """`text_features` in fp32, without gradient."""
        return self.text_features().float()

    def zero_shot_weights(self) -> dict[str, Tensor]:
        """Hook: values of the trainable parameters at which the model is zero-shot CLIP, by name."""
        raise UserError(
            f"{type(self).__name__} has no zero-shot solution: its trained parameters are no part of CLIP, "
            "and no value of them gives CLIP back"
        )

    def zero_shot_prompt(self, space: str) -> str:
        """Hook: the template of zero-shot CLIP where the path of this space ("features" or "weights") starts."""
        return self.template

    def class_logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Hook: logits (B, C) of image features (B, D) and class vectors (C, D); cosines, times CLIP's scale."""
        return compiled(cosine_logits, self.clip)(image, text, self.clip.logit_scale)

    def cross_entropy(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """CE of logits; notes the accuracy for the log line. image (B, D), text (C, D), labels (B,)."""
        logits = self.class_logits(image, text.float())
        self.log_metrics(acc=compute_accuracy(logits.detach(), labels)[0])
        return F.cross_entropy(logits, labels)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Cross-entropy alone, unless a subclass adds to it."""
        images, labels = self.parse_batch_train(batch)
        return {"ce": self.cross_entropy(self.image_features(images), self.text_features(), labels)}

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        text = self.text_features() if self._classifier is None else self._classifier
        return self.class_logits(self.image_features(images), text)

    @contextmanager
    def cached_classifier(self) -> Iterator[None]:
        """Evaluation mode, and class vectors computed once for all the images of one evaluation."""
        self.set_model_mode("eval")
        with torch.no_grad(), self.precision.autocast():
            self._classifier = self.text_features().float()
        try:
            yield
        finally:
            self._classifier = None

    def test(self, split: str | None = None) -> float:
        """Accuracy in percent on a split; the text tower runs once."""
        self.use_feature_bank_for(split or self.cfg.TEST.SPLIT)
        with self.cached_classifier():
            return super().test(split)

    def metadata(self) -> dict:
        """What results.json records of the model and its data."""
        data = self.cfg.DATASET
        before = self.cfg.MODEL.INIT_WEIGHTS
        before = f"; before that: {data_seen(find_checkpoint(before, self.model_name))}" if before else ""
        return {
            "source": data.NAME,
            "source_subset": data.SUBSAMPLE_CLASSES,
            "templates": self.template,
            "classes": classes_fact(self.classnames),
            "backbone": self.clip.metadata(),
            "data_seen": images_seen(self) + before,
        }


__getattr__ = old_names(__name__)
