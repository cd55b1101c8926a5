"""Vanilla: empirical risk minimisation, the baseline of every domain generalisation method."""

from ..build import TRAINER_REGISTRY
from ..classify import Classifies
from ..loops import TrainerX


@TRAINER_REGISTRY.register()
class Vanilla(Classifies, TrainerX):
    """Cross-entropy on all source domains together."""

    CONFIG = "VANILLA"

    def parse_batch_train(self, batch):
        """Images (B, 3, H, W) and labels (B,), on the device; further values of a subclass are left aside."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def losses(self, batch):
        image, label, *_ = self.parse_batch_train(batch)
        return {"ce": self.supervised(self.model(image), label)}
