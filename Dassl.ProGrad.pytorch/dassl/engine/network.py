"""SimpleNet: backbone, optional head, optional linear classifier; what Dassl's default `build_model` makes, and what
the trainers of dg, da and ssl train on cross-entropy.

Letters: B images, F features, C classes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.metrics import compute_accuracy
from dassl.modeling import build_backbone, build_head

from .precision import precision_key


class SimpleNet(nn.Module):
    """Classifier of images, by the names in `model_cfg`.

    num_classes 0 leaves the classifier out. Further keywords go to the backbone.
    """

    def __init__(self, cfg: CN, model_cfg: CN, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = build_backbone(
            model_cfg.BACKBONE.NAME, verbose=cfg.VERBOSE, pretrained=model_cfg.BACKBONE.PRETRAINED, **kwargs
        )
        self.fdim = self.backbone.out_features  # F, as the classifier sees it
        self.head = None
        head = model_cfg.HEAD
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self.fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
            )
            self.fdim = self.head.out_features
        self.classifier = nn.Linear(self.fdim, num_classes) if num_classes > 0 else None

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> logits (B, C), or (logits, features (B, F)); features if no classifier."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits


class Classifies:
    """Mixed into TrainerX or TrainerXU: cross-entropy on the labelled batch; the model is their `build_model`'s."""

    KEYS = {"PREC": precision_key("fp32")}
    # of its other base class
    device: torch.device
    model: Any
    log_metrics: Callable[..., None]

    def parse_batch_train(self, batch_x: dict, batch_u: dict | None = None) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) and labels (B,), on the device; what more a subclass gives is left aside."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device)

    def losses(self, *batches: dict) -> dict[str, Tensor]:
        """{"ce": cross-entropy on the labelled batch}, a scalar."""
        image, label, *_ = self.parse_batch_train(*batches)
        return {"ce": self.supervised(self.model(image), label)}

    def supervised(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of (B, C) and (B,), a scalar; notes the accuracy for the log line."""
        self.log_metrics(acc=compute_accuracy(logits.detach(), label)[0])
        return F.cross_entropy(logits, label)
