"""MERGETUNE for robust fine-tuning (arXiv 2601.10497): on the linear probe's head, or on image tower and head.

w1: zero-shot CLIP, its classifier as the head. SPACE weights (the presets'): w is all that trains. SPACE features:
w is the head alone.
Letters: B images, C classes, D joint width, S line points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dassl.engine import TRAINER_REGISTRY
from mergetune.lmc import interpolate, line_of_logits
from mergetune.models.heads import linear_line_loss
from mergetune.stage2 import MergeTune, swapped_parameters, trainable
from mergetune.trainers.finetune import FineTune
from mergetune.trainers.linear_probe import LinearProbe


class HeadContinued(MergeTune):
    """`MergeTune` where class vectors are a head: its length counts, so nothing on the path is normalised."""

    protocols = ("robust",)

    def zero_shot_vectors(self) -> Tensor:
        return self.zero_shot_head()

    def feature_path(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy on the path between heads, at the image features of w."""
        one_sided = self.cfg.TRAINER.LMC.PATH_TO == "zero_shot"
        start, end = (text, self.f1) if one_sided else (self.f2, text)
        return linear_line_loss(image, labels, start, end, self.points)

    @torch.no_grad()
    def path_logits(self, space: str, start, end, points: Tensor, images: Tensor) -> Tensor:
        if space == "features":
            image = self.image_features(images)
            return line_of_logits(image @ start.t(), image @ end.t(), points)
        return super().path_logits(space, start, end, points, images)


@TRAINER_REGISTRY.register()
class LinearProbe_LMC(HeadContinued, LinearProbe):
    """Its endpoints: the zero-shot classifier and stage 1's head."""

    stage1 = LinearProbe
    presets = {"paper": "paper", "continued": "continued"}
    toy_presets = {"paper": "paper_toy", "continued": "continued_toy"}

    def weight_path(self, images: Tensor, labels: Tensor) -> Tensor:
        """In closed form: logits are linear in the head."""
        image, key = self.image_features(images), self.head_key
        return linear_line_loss(image, labels, self.w2[key], self.text_features(), self.points)


@TRAINER_REGISTRY.register()
class FineTune_LMC(HeadContinued, FineTune):
    """Its endpoints: CLIP's image tower with the zero-shot classifier, and stage 1's tower and head."""

    stage1 = FineTune
    presets, toy_presets = LinearProbe_LMC.presets, LinearProbe_LMC.toy_presets
    path_note = "image features are ours at every point: the ends are heads on them, not the models"

    def weight_path(self, images: Tensor, labels: Tensor) -> Tensor:
        """One pass of the tower a point, run again in the backward pass: memory of one pass, not of S."""
        return torch.stack([self._point_loss(t, images, labels) for t in self.line]).mean()

    def _point_loss(self, t: float, images: Tensor, labels: Tensor) -> Tensor:
        def loss() -> Tensor:
            with swapped_parameters(self.model, interpolate(self.w2, trainable(self.model), t)):
                return F.cross_entropy(self.class_logits(self.image_features(images), self.text_features()), labels)

        if t == 0:  # w2 itself: no gradient for w
            with torch.no_grad():
                return loss()
        return checkpoint(loss, use_reentrant=False)
