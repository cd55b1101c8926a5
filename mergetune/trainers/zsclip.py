"""Zero-shot CLIP (Radford et al., arXiv 2103.00020): class vectors from the data set's template, no training."""

from torch import Tensor

from dassl.clip import text_classifier
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from mergetune.frozen import FrozenClipTrainer


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FrozenClipTrainer):
    """CLIP as it comes."""

    needs_checkpoint = False

    @property
    def template(self) -> str:
        """CoOp's zero-shot template of the data set, which differs from KgCoOp's for DTD."""
        templates = getattr(self.dm.dataset, "templates", {})
        return templates.get("coop") or super().template

    def build_model(self) -> None:
        """Class vectors once; nothing is registered, so nothing trains or is saved."""
        self.build_backbone()
        self._zero_shot = text_classifier(self.clip, self.classnames, [self.template])

    def text_features(self) -> Tensor:
        return self._zero_shot

    def before_train(self) -> None:
        raise UserError(f"{type(self).__name__} has nothing to train; add --eval-only")

    def facts(self) -> dict:
        return super().facts() | {"data_seen": "none", "chosen_on": "none"}
