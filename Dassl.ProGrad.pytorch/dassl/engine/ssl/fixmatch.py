"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): a confident label of the weak view teaches the strong view.

The paper evaluates a moving average of the weights; here, as in Dassl, it is the weights themselves.
Letters: B images, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.config import KEYS
from dassl.data import DataManager, transforms
from dassl.utils import UserError

from ..build import TRAINER_REGISTRY
from ..network import Classifies
from ..trainer import TrainerXU


def pseudo_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(B, C) -> (labels (B,), which of them count (B,) bool: probability of at least `threshold`)."""
    probability, label = logits.softmax(1).max(1)
    return label, probability >= threshold


def pseudo_label_loss(logits: Tensor, label: Tensor, counts: Tensor) -> Tensor:
    """Mean over all B, where those that do not `count` (B,) add 0, of the cross-entropy of (B, C) with `label` (B,)."""
    return (F.cross_entropy(logits, label, reduction="none") * counts).mean()


@TRAINER_REGISTRY.register()
class FixMatch(Classifies, TrainerXU):
    """Two views of each image: by INPUT.TRANSFORMS (weak) and by STRONG_TRANSFORMS.

    As in Dassl, the labelled images take part in the unlabelled loss too. Keys: WEIGHT_U of that loss, CONF_THRE
    of a pseudo-label, STRONG_TRANSFORMS (names); the first two are attributes too.
    """

    CONFIG = "FIXMATCH"
    KEYS = Classifies.KEYS | {
        name: KEYS[f"TRAINER.FIXMATCH.{name}"] for name in ("WEIGHT_U", "CONF_THRE", "STRONG_TRANSFORMS")
    }

    def __init__(self, cfg: CN) -> None:
        super().__init__(cfg)
        self.weight_u = cfg.TRAINER.FIXMATCH.WEIGHT_U
        self.conf_thre = cfg.TRAINER.FIXMATCH.CONF_THRE

    def check_cfg(self, cfg: CN) -> None:
        """UserError where the strong view has no transform."""
        node = cfg.TRAINER.FIXMATCH
        if not node.STRONG_TRANSFORMS:
            raise UserError(
                "TRAINER.FIXMATCH.STRONG_TRANSFORMS is empty, expected names such as "
                '["random_flip", "random_crop", "randaugment_fixmatch", "normalize"]'
            )

    def build_data_manager(self) -> DataManager:
        """The data set with both views of each training image."""
        weak = transforms.build_transform(self.cfg, is_train=True)
        names = self.cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS
        strong = transforms.build_transform(self.cfg, is_train=True, choices=names)
        return DataManager(self.cfg, custom_tfm_train=[weak, strong])

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[Tensor, ...]:  # type: ignore[override]  # needs both
        """On the device: weak view, strong view and labels of the labelled batch, and of the unlabelled one."""
        keys = ("img", "img2", "label")
        return tuple(batch[key].to(self.device) for batch in (batch_x, batch_u) for key in keys)

    def assess_y_pred_quality(self, y_pred: Tensor, y_true: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Hook: how good pseudo-labels (B,) are, where `mask` (B,) is 1 for those that count -> scalars.

        acc_thre: the share of those that count that is right; acc_raw: of all; keep_rate: how many count.
        """
        right = y_pred.eq(y_true).float()
        return {
            "acc_thre": (right * mask).sum() / (mask.sum() + 1e-5),
            "acc_raw": right.mean(),
            "keep_rate": mask.mean(),
        }

    def losses(self, batch_x: dict, batch_u: dict) -> dict[str, Tensor]:  # type: ignore[override]  # likewise
        """{"ce": of the labelled batch, "pseudo": of both}, scalars."""
        parsed = self.parse_batch_train(batch_x, batch_u)
        first, label_u = 0, []
        if len(parsed) == 4:  # a subclass that leaves out the labelled batch's strong view and the other's labels
            image, label, weak, strong = parsed
        else:
            image, image2, label, weak, strong, *label_u = parsed
            weak, strong, first = torch.cat([image, weak]), torch.cat([image2, strong]), len(image)
        with torch.no_grad():
            target, counts = pseudo_labels(self.model(weak), self.conf_thre)
        self.log_metrics(kept=100.0 * counts[first:].float().mean())
        for truth in label_u:
            quality = self.assess_y_pred_quality(target[first:], truth, counts[first:].float())
            self.log_metrics(acc_raw=100.0 * quality["acc_raw"], acc_thre=100.0 * quality["acc_thre"])
        return {
            "ce": self.supervised(self.model(image), label),
            "pseudo": self.weight_u * pseudo_label_loss(self.model(strong), target, counts),
        }
