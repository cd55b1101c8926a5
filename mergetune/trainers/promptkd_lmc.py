"""MERGETUNE on PromptKD (arXiv 2601.10497): the student trained on, connected to the stage-1 student w2.

    loss = KD + LAMBDA * mean (theta - theta_2)^2 + BETA * mean_t KL(teacher || logits_t)
    logits_t = s * [(1 - t) x_2 + t x] . f

x, x_2 unit-norm image features of w and w2, f the teacher's class vectors, s the student's scale. The mixed
feature is not normalised again, so logits_t are linear in t: one pass of the student serves all points, and x_2
comes from the feature bank. Prompts and projection are no part of CLIP, so there is no w1: the anchor is w2.
Letters: B images, C classes, S line points.
"""

import torch
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from mergetune.lmc import interpolate, line_of_logits, weight_distance
from mergetune.models.student import PromptedTower
from mergetune.stage2 import MergeTune, trainable
from mergetune.trainers.promptkd import PromptKD


@TRAINER_REGISTRY.register()
class PromptKD_LMC(MergeTune, PromptKD):
    """Its one endpoint: the stage-1 student, batch statistics included."""

    stage1 = PromptKD
    has_zero_shot = False  # prompts and projection are no part of CLIP
    protocols = ("base2new",)  # a student sees all classes, unlabelled
    presets = {"released": "vit_b16_c2_ep20_batch8_4+4ctx", "paper": "paper", "continued": "continued"}
    toy_presets = {"released": "released_batch8", "paper": "paper_batch8", "continued": "continued_batch8"}
    # the released code's keys; a value given to one of them sets ours
    ALIASES = {
        "TRAINER.PROMPTKD.USE_LMC": "TRAINER.LMC.ENABLED",
        "TRAINER.PROMPTKD.LAMBDA_REG": "TRAINER.LMC.LAMBDA",
        "TRAINER.PROMPTKD.BETA_LMC": "TRAINER.LMC.BETA",
        "TRAINER.PROMPTKD.NUM_SAMPLES": "TRAINER.LMC.NUM_SAMPLES",
        "TRAINER.PROMPTKD.PRETRAINED_STUDENT_PATH": "RESUME_COOP",
    }

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        settings = cfg.TRAINER.LMC
        for key, value in {"TAU": 1.0, "SPACE": "features", "PATH_TO": "stage1"}.items():
            if settings[key] != value:
                raise UserError(
                    f"TRAINER.LMC.{key} is {settings[key]!r}, expected {value!r}: a student's prompts and projection "
                    "are no part of CLIP, so it has no zero-shot end; its path runs between image features"
                )

    def set_endpoints(self) -> None:
        """w2 with its batch statistics, as a frozen student and as the start."""
        self.w2 = self.read_stage1()
        self.student2 = self.new_student()
        self.student2.load_state_dict(self.model.state_dict())
        self.tower2 = PromptedTower(self.clip, self.student2, self.student2)
        self.scratch = self.new_student().eval().requires_grad_(False)

    def read_stage1(self) -> dict[str, Tensor]:
        weights = super().read_stage1()
        self.check_teacher(self.stage1_file)
        return weights

    def towers(self) -> dict[str, object]:
        return super().towers() | {"stage1": self.tower2}

    def losses(self, batch: dict) -> dict[str, Tensor]:
        weight = self.cfg.TRAINER.LMC.LAMBDA
        images, _ = self.parse_batch_train(batch)
        teacher, student = self.teacher_logits(batch), self.logits(self.image_features(images))
        losses = {"kd": self.kd(teacher, student)}
        if weight:
            losses["anchor"] = weight * self.anchor()
        if self.beta:
            features = batch["stage1"].to(self.device, non_blocking=True).float()
            first = self.logits(features)  # of w2: cosines, so x_2 is normalised here
            losses["lmc"] = self.beta * self.divergence(teacher, line_of_logits(first, student, self.points))
        return losses

    def anchor(self, text: Tensor | None = None) -> Tensor:
        """Mean squared gap to w2 over all trained numbers."""
        now = trainable(self.model)
        return weight_distance(now, self.w2) / sum(value.numel() for value in now.values())

    def solutions(self, space: str) -> dict[str, dict[str, Tensor]]:
        """ours, fine_tuned: a student's whole state each, in either space."""
        pair = {"ours": self.model, "fine_tuned": self.student2}
        return {
            name: {key: value.detach().clone() for key, value in part.state_dict().items() if value.is_floating_point()}
            for name, part in pair.items()
        }

    @torch.no_grad()
    def path_logits(self, space: str, start, end, points: Tensor, images: Tensor) -> Tensor:
        """Logits (S, B, C) between two students; in the space of features, their image features are mixed."""
        if space == "features":
            return line_of_logits(self.logits_at(start, images), self.logits_at(end, images), points)
        return torch.stack([self.logits_at(interpolate(start, end, t), images) for t in points.tolist()])

    def zero_shot_prompt(self, space: str) -> str:
        """None: there is no zero-shot end."""
        return ""

    def logits_at(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """(B, C) of the student with this state."""
        self.scratch.load_state_dict(state, strict=False)
        return self.logits(self.student_features(self.scratch, images)).float()

    def metadata(self) -> dict:
        """DISTANCE is not read: the anchor has one form."""
        facts = super().metadata()
        return facts | {"lmc": facts["lmc"] | {"DISTANCE": "l2sq", "ANCHOR": "stage1"}}
