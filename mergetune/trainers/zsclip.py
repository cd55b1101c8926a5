"""Zero-shot CLIP (Radford et al., arXiv 2103.00020): class vectors from text alone, no training."""

from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.clip import text_classifier
from dassl.config import Key
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from mergetune.clip_trainer import ClipTrainer
from mergetune.models.templates import LISTS, OWN, SELECT, described, templates

COOP = "coop"


def is_prompt(text: str) -> bool:
    """a name, or a text with one {} for the class name"""
    return text in (COOP, OWN, *LISTS) or "{}" in text and text.count("{") + text.count("}") == 2


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    """CLIP as it comes, with the data set's template."""

    CONFIG = "ZEROSHOT"
    needs_checkpoint = False

    KEYS = {
        "TEMPLATES": Key(
            COOP,
            "coop (CoOp's template of the data set), dataset (KgCoOp's and MERGETUNE's), imagenet (80), select (7), or "
            "a template of one's own",
            test=is_prompt,
        )
    }

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        if cfg.MODEL.INIT_WEIGHTS:
            raise UserError(f"{type(self).__name__} has no weights of its own that MODEL.INIT_WEIGHTS could set")

    @property
    def template(self) -> str:
        """CoOp's zero-shot template of the data set, which differs from KgCoOp's for DTD."""
        return getattr(self.dm.dataset, "templates", {}).get(COOP) or super().template

    def templates(self) -> Sequence[str]:
        """The prompts whose class vectors are averaged."""
        name = self.cfg.TRAINER.ZEROSHOT.TEMPLATES
        if name == COOP or "{}" in name:
            return [self.template if name == COOP else name]
        return templates(name, super().template)

    def build_model(self) -> None:
        """Class vectors once; nothing is registered, so nothing trains or is saved."""
        self.build_backbone()
        self._zero_shot = text_classifier(self.clip, self.classnames, self.templates())

    def text_features(self) -> Tensor:
        return self._zero_shot

    def before_train(self) -> None:
        raise UserError(f"{type(self).__name__} has nothing to train; add --eval-only")

    def metadata(self) -> dict:
        prompts, asked = list(self.templates()), self.cfg.TRAINER.ZEROSHOT.TEMPLATES
        families = {COOP: self.template, OWN: super().template}
        names = [asked, *(name for name, template in families.items() if [template] == prompts)]
        names += prompts if len(prompts) == 1 else []
        return super().metadata() | {
            "templates": described(asked, prompts),
            "template_family": list(dict.fromkeys(names)),
            "data_seen": "none",
            "chosen_on": "none",
            "preset": "",
        }


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """The mean over seven of CLIP's ImageNet templates, and the data set's own where that is another."""

    def templates(self) -> list[str]:
        return list(dict.fromkeys([*SELECT, self.template]))

    def metadata(self) -> dict:
        return super().metadata() | {"templates": self.templates(), "template_family": None}
