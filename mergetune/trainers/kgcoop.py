"""KgCoOp (Yao et al., arXiv 2303.13283): CoOp, held near the class vectors of the data set's template."""

from torch import Tensor

from dassl.clip import text_classifier
from dassl.engine import TRAINER_REGISTRY
from mergetune.lmc import anchor_distance
from mergetune.trainers.coop import CoOp


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Cross-entropy, plus TRAINER.COOP.W times one minus the mean cosine to zero-shot CLIP's class vectors."""

    def build_model(self) -> None:
        super().build_model()
        self._zero_shot = text_classifier(self.clip, self.classnames, [self.template]).float()  # (C, D)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        images, labels = self.parse_batch_train(batch)
        text = self.text_features().float()
        return {
            "ce": self.cross_entropy(self.image_features(images), text, labels),
            "kg": self.cfg.TRAINER.COOP.W * anchor_distance(text, self._zero_shot, "cosine"),
        }
