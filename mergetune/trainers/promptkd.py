"""PromptKD (Li et al., arXiv 2403.02781): a student learns a prompted teacher's logits, without labels.

    loss = KD_WEIGHT * KL(teacher || student) / number of logits

It trains on the images of all classes, unlabelled. The teacher's text features are the classifier of both;
its image features come from the feature bank.
Letters: B images, C classes, E joint width of the teacher.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.clip import cached_clip, check_input, compiled, cosine_logits
from dassl.config import Key
from dassl.data import build_data_loader, subsample_classes
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.precision import precision_key
from dassl.engine.results import images_seen
from dassl.utils import UserError
from mergetune.clip_trainer import ClipTrainer
from mergetune.models.deep_prompts import keep_prompts
from mergetune.models.student import Student, Teacher, distil_loader, distillation
from mergetune.stage1 import data_seen, run_fact
from mergetune.trainers.promptsrc import PromptSRC


@TRAINER_REGISTRY.register()
class PromptKD(ClipTrainer):
    """Trains image prompts and a projection on the teacher's logits."""

    taught_by = PromptSRC
    CONFIG = "PROMPTKD"
    model_name = "VLPromptLearner"
    frozen_image_tower = False  # its prompts train
    base_classes: int | None = None  # classes that validation is about; None: all
    _columns: int | None = None  # classes of the evaluation that runs

    KEYS = {
        "N_CTX_VISION": Key(4, "the student's vectors a block", ge=1),
        "PROMPT_DEPTH_VISION": Key(9, "its blocks with prompts, from the first", ge=1),
        "N_CTX_TEXT": Key(4, "the teacher's: read off its file, accepted for other people's yamls", ge=0),
        "CTX_INIT": Key("a photo of a", "as N_CTX_TEXT", also=bool),
        "PROMPT_DEPTH_TEXT": Key(9, "as N_CTX_TEXT", ge=0),
        "PROJECT_LAYER": Key(2, "layers of the projection; there is no other form", ge=2, le=2),
        "CE_WEIGHT": Key(0.0, "of the labels: new classes have none here, so 0", ge=0, le=0, role="training"),
        "KD_WEIGHT": Key(1.0, "of the distillation", ge=0, role="training"),
        "TEMPERATURE": Key(1.0, "of both models' logits", gt=0, role="training"),
        "TEACHER_NAME": Key("ViT-B/16", "its CLIP, named as MODEL.BACKBONE.NAME", path=True),
        "TEACHER_PATH": Key("", "its weights file, as MODEL.BACKBONE.PATH", path=True),
        "TEACHER_DIR": Key("", "run folder or file of PromptSRC; empty: plain CLIP teaches", path=True),
        "PREC": precision_key("amp"),
    }

    def build_data_loader(self) -> None:
        """Base-to-new: validation is about base classes alone, though the training images are of all."""
        super().build_data_loader()
        cfg, data = self.cfg, self.dm.dataset
        halves = cfg.TRAINER.MODAL == "base2novel" and cfg.DATASET.SUBSAMPLE_CLASSES == "all"
        if halves and self.val_loader is not None:
            base, items = subsample_classes(data.train_x, data.val, subset="base")
            self.base_classes = len({item.label for item in base})
            node, transform = cfg.DATALOADER.TEST, self.val_loader.dataset.transform
            self.val_loader = build_data_loader(
                cfg, node.SAMPLER, items, node.BATCH_SIZE, tfm=transform, is_train=False
            )

    def build_trained(self) -> Student:
        settings = self.cfg.TRAINER.PROMPTKD
        teacher = cached_clip(
            settings.TEACHER_NAME,
            path=settings.TEACHER_PATH,
            device=self.device,
            precision="fp16" if self.precision.dtype == torch.float16 else "fp32",
        )
        check_input(self.cfg, teacher)
        teacher = teacher.saving_memory(self.cfg.MODEL.TEXT_CHUNK)
        self.teacher = Teacher(teacher, self.classnames, template=self.template, folder=settings.TEACHER_DIR)
        return self.new_student()

    def new_student(self) -> Student:
        """An untrained one."""
        settings = self.cfg.TRAINER.PROMPTKD
        width = self.teacher.text.shape[1]
        return Student(self.clip, width, count=settings.N_CTX_VISION, depth=settings.PROMPT_DEPTH_VISION)

    def towers(self) -> dict[str, object]:
        """What the feature bank encodes for training, by name."""
        return {"teacher": self.teacher.tower}

    def before_train(self) -> None:
        size = min(self.train_loader_x.batch_size, len(self.dm.dataset.train_x))
        if size < 2 and self.max_epoch:
            raise UserError(f"{type(self).__name__} has a batch norm, which needs two images a batch, and has {size}")
        super().before_train()

    def use_feature_bank(self, name: str, *, is_train: bool) -> None:
        """Training images come with the teacher's features of the same view."""
        if is_train:
            loader = distil_loader(self.cfg, getattr(self, name), self.towers(), self.precision.autocast)
            setattr(self, name, loader)

    def student_features(self, student: Student, images: Tensor) -> Tensor:
        """Unit-norm features (B, E) of images (B, 3, H, W) through a student."""
        with self.precision.autocast():
            return F.normalize(student(images).float(), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, E) of the student; gradients reach its prompts and projection."""
        return self.student_features(self.model, images)

    def text_features(self) -> Tensor:
        """The teacher's class vectors (C, E)."""
        return self.teacher.text[: self._columns]

    def logits(self, features: Tensor) -> Tensor:
        """(B, E) unit norm -> (B, C), with the student's scale."""
        return compiled(cosine_logits, self.clip)(features, self.text_features(), self.clip.logit_scale.float())

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL of logits (B, C), or of those (S, B, C) of a path."""
        return distillation(teacher, student, self.cfg.TRAINER.PROMPTKD.TEMPERATURE)

    def teacher_logits(self, batch: dict) -> Tensor:
        """(B, C), from stored features."""
        return self.teacher.logits(batch["teacher"].to(self.device, non_blocking=True))

    def losses(self, batch: dict) -> dict[str, Tensor]:
        images, _ = self.parse_batch_train(batch)
        teacher, student = self.teacher_logits(batch), self.logits(self.image_features(images))
        return {"kd": self.kd(teacher, student)}

    def kd(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The distillation loss of logits (B, C); notes how often the two agree."""
        agree = (teacher.argmax(-1) == student.argmax(-1)).float().mean()
        self.log_metrics(agree=100 * agree.detach())
        return self.cfg.TRAINER.PROMPTKD.KD_WEIGHT * self.divergence(teacher, student)

    def test(self, split: str | None = None) -> float:
        self._columns = self.base_classes if (split or self.cfg.TEST.SPLIT) == "val" else None
        try:
            return super().test(split)
        finally:
            self._columns = None

    def drop_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's own weights in the files of others are not loaded."""
        return keep_prompts(super().drop_keys(state))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        if directory:
            self.check_teacher(Path(directory))

    def check_teacher(self, place: Path) -> None:
        """Refuse a student of ours that learned from another teacher, whose text features it was made for."""
        before, now = run_fact(place, "teacher"), self.teacher.fact()

        def words(fact: dict) -> str:
            return " ".join(part for part in (fact["name"], fact["file"], f"({fact['digest'][:12]})") if part)

        if before.get("digest", now["digest"]) != now["digest"]:
            raise UserError(
                f"{place} learned from the teacher {words(before)}, this run has {words(now)}: "
                "see TRAINER.PROMPTKD.TEACHER_DIR"
            )

    def metadata(self) -> dict:
        of_teacher = data_seen(Path(self.teacher.file)) if self.teacher.file else "none"
        seen = f"{images_seen(self, 'all training images')}, without labels; teacher: {of_teacher}"
        return super().metadata() | {
            "templates": "the teacher's prompts" if self.teacher.file else self.template,
            "teacher": self.teacher.fact(),
            "data_seen": seen,
        }
