"""SupBaseline: the labelled pictures alone, with as many steps as the methods that use the others."""

from ..build import TRAINER_REGISTRY
from ..classify import Classifies
from ..loops import TrainerXU


class LabelledOnly(Classifies, TrainerXU):
    """Cross-entropy on the labelled batch of each pair."""

    def parse_batch_train(self, batch_x, batch_u):
        """Images (B, 3, H, W) and labels (B,), on the device; further values of a subclass are left aside."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device)

    def losses(self, batch_x, batch_u):
        image, label, *_ = self.parse_batch_train(batch_x, batch_u)
        return {"ce": self.supervised(self.model(image), label)}


@TRAINER_REGISTRY.register()
class SupBaseline(LabelledOnly):
    """The baseline of every semi-supervised method."""

    CONFIG = "SUPBASELINE"
