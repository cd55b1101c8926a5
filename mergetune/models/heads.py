"""Linear heads on CLIP's image tower that start as zero-shot CLIP (WiSE-FT, Wortsman et al., arXiv 2109.01903).

    logits = x W^T     x unit-norm image features (B, D), W (C, D), no bias

At its start W is the zero-shot classifier, normalised, times exp(logit_scale): exactly zero-shot CLIP.
Letters: B images, C classes, D joint width, S line points.
"""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dassl.clip import text_classifier
from dassl.config import Key
from dassl.engine.precision import precision_key
from dassl.engine.results import check_classes, run_classes
from dassl.utils import UserError
from mergetune.clip_trainer import ClipTrainer
from mergetune.lmc import line_of_logits
from mergetune.models.templates import LISTS, OWN, described, templates


class LinearHead(nn.Module):
    """One vector a class, no bias; starts at `weight` (C, D)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        """(B, D) unit norm -> logits (B, C)."""
        return image @ self.weight.t()


def linear_line_loss(image: Tensor, labels: Tensor, start: Tensor, end: Tensor, points: Tensor) -> Tensor:
    """Mean cross-entropy over the S points of a path between heads: logits are linear in t, so two products serve all.

    image (B, D), labels (B,), start and end (C, D), points (S,).
    """
    logits = line_of_logits(image @ start.t(), image @ end.t(), points)  # (S, B, C)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(points)))


def rows_for(trained: Sequence[str], classnames: Sequence[str], where: str | Path) -> list[int]:
    """Which rows of a head trained on the classes `trained` score the classes `classnames`, by name.

    A name that the head has twice gives its first row. UserError: a class that the head was not trained on.
    """
    places = {name: row for row, name in reversed(list(enumerate(trained)))}
    strange = [name for name in classnames if name not in places]
    if strange:
        raise UserError(
            f"{where} is a linear head of {len(trained)} classes ({trained[0]} .. {trained[-1]}) and knows no others: "
            f"{len(strange)} of this run's {len(classnames)} are not among them ({', '.join(strange[:3])})"
        )
    return [places[name] for name in classnames]


class HeadTrainer(ClipTrainer):
    """What LinearProbe and FineTune share. `model` holds the head under the name `head_key`."""

    CONFIG = "HEAD"
    learns_prompts = True
    head_key = "weight"

    KEYS = {
        "TEMPLATES": Key(
            OWN, "of the zero-shot head: dataset (the data set's own), imagenet (80), select (7)", choices=(OWN, *LISTS)
        ),
        "PREC": precision_key("amp"),
    }

    @property
    def prompts(self) -> Sequence[str]:
        """The templates of the zero-shot head."""
        return templates(self.cfg.TRAINER.HEAD.TEMPLATES, self.template)

    def zero_shot_head(self) -> Tensor:
        """Where the head starts, (C, D) in fp32: the mean over templates of the normalised text features, normalised,
        times exp(logit_scale)."""
        vectors = text_classifier(self.clip, self.classnames, self.prompts).float()
        return self.clip.logit_scale.float() * F.normalize(vectors, dim=-1)

    def text_features(self) -> Tensor:
        """The head (C, D), at its true length: its logits are inner products, not cosines."""
        return attrgetter(self.head_key)(self.model)

    def class_vectors(self) -> Tensor:
        """A copy of the head (C, D) in fp32: the head itself goes on training."""
        return self.text_features().detach().float().clone()

    def class_logits(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, D) unit norm, the head (C, D) -> (B, C)."""
        return image @ text.t()

    def fit_classes(self, path: str | Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the head's rows of this run's classes, in their order, by the names in classes.json."""
        trained = run_classes(path)
        if not trained:
            check_classes(path, self.classnames)
        if not trained or trained == self.classnames or len(state.get(self.head_key, ())) != len(trained):
            return state
        return state | {self.head_key: state[self.head_key][rows_for(trained, self.classnames, path)]}

    def zero_shot_prompt(self, space: str) -> str:
        """The head's prompts."""
        return described(self.cfg.TRAINER.HEAD.TEMPLATES, self.prompts)

    def metadata(self) -> dict:
        return super().metadata() | {"templates": self.zero_shot_prompt("weights")}
