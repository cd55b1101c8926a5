"""Zero-shot CLIP (Radford et al., arXiv 2103.00020): class vectors from text alone, no training."""

from torch import Tensor

from dassl.clip import text_classifier
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from mergetune.frozen import FrozenClipTrainer
from mergetune.templates import SELECT


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FrozenClipTrainer):
    """CLIP as it comes, with the data set's template."""

    needs_checkpoint = False

    @property
    def template(self) -> str:
        """CoOp's zero-shot template of the data set, which differs from KgCoOp's for DTD."""
        templates = getattr(self.dm.dataset, "templates", {})
        return templates.get("coop") or super().template

    def templates(self) -> list[str]:
        """The prompts whose class vectors are averaged."""
        return [self.template]

    def build_model(self) -> None:
        """Class vectors once; nothing is registered, so nothing trains or is saved."""
        self.build_backbone()
        self._zero_shot = text_classifier(self.clip, self.classnames, self.templates())

    def text_features(self) -> Tensor:
        return self._zero_shot

    def before_train(self) -> None:
        raise UserError(f"{type(self).__name__} has nothing to train; add --eval-only")

    def facts(self) -> dict:
        return super().facts() | {"data_seen": "none", "chosen_on": "none", "preset": ""}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """The mean over seven of CLIP's ImageNet templates, and the data set's own where that is another."""

    def templates(self) -> list[str]:
        return list(dict.fromkeys([*SELECT, self.template]))

    def facts(self) -> dict:
        return super().facts() | {"templates": self.templates()}
