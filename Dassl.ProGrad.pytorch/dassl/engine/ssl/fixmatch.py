"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): a confident label of the weak view teaches the strong view.

The paper evaluates a moving average of the weights; here, as in Dassl, it is the weights themselves.
Letters: B images, C classes.
"""

import torch
import torch.nn.functional as F

from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.utils import UserError

from ..build import TRAINER_REGISTRY
from ..classify import Classifies
from ..loops import TrainerXU


def pseudo_labels(logits, threshold):
    """(B, C) -> (labels (B,), which of them count (B,) bool: probability of at least `threshold`)."""
    probability, label = logits.softmax(1).max(1)
    return label, probability >= threshold


def pseudo_label_loss(logits, label, counts):
    """Mean over all B, where those that do not count add 0, of the cross-entropy with `label` (B,)."""
    return (F.cross_entropy(logits, label, reduction="none") * counts).mean()


@TRAINER_REGISTRY.register()
class FixMatch(Classifies, TrainerXU):
    """Two views of each unlabelled picture: by INPUT.TRANSFORMS and by STRONG_TRANSFORMS.

    Keys: WEIGHT_U of the unlabelled loss, CONF_THRE of a pseudo-label, STRONG_TRANSFORMS (names).
    """

    CONFIG = "FIXMATCH"

    def check_cfg(self, cfg):
        node = cfg.TRAINER.FIXMATCH
        if not node.STRONG_TRANSFORMS:
            raise UserError(
                "TRAINER.FIXMATCH.STRONG_TRANSFORMS is empty, expected names such as "
                '["random_flip", "random_crop", "randaugment_fixmatch", "normalize"]'
            )
        if not 0 <= node.CONF_THRE <= 1:
            raise UserError(f"TRAINER.FIXMATCH.CONF_THRE is {node.CONF_THRE}, expected a probability")

    def build_data_manager(self):
        weak = build_transform(self.cfg, is_train=True)
        strong = build_transform(self.cfg, is_train=True, choices=self.cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS)
        return DataManager(self.cfg, custom_tfm_train=[weak, strong])

    def parse_batch_train(self, batch_x, batch_u):
        """Weak images and labels of the labelled batch, weak and strong images of the other, on the device."""
        images = batch_x["img"], batch_x["label"], batch_u["img"], batch_u["img2"]
        return tuple(item.to(self.device) for item in images)

    def losses(self, batch_x, batch_u):
        node = self.cfg.TRAINER.FIXMATCH
        image, label, weak, strong = self.parse_batch_train(batch_x, batch_u)
        with torch.no_grad():
            target, counts = pseudo_labels(self.model(weak), node.CONF_THRE)
        labelled, unlabelled = self.model(torch.cat([image, strong])).split([len(image), len(strong)])
        self.note(kept=100.0 * counts.float().mean())
        return {
            "ce": self.supervised(labelled, label),
            "pseudo": node.WEIGHT_U * pseudo_label_loss(unlabelled, target, counts),
        }
