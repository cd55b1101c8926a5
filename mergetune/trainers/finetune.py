"""End-to-end fine-tuning of WiSE-FT (arXiv 2109.01903): CLIP's image tower and a head that starts as zero-shot CLIP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, check_input
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, set_bn_to_eval
from mergetune.models.heads import HeadTrainer, LinearHead


class FineTuned(nn.Module):
    """What trains and is stored: the image tower `visual` and the `head`."""

    def __init__(self, visual: nn.Module, head: LinearHead):
        super().__init__()
        self.visual, self.head = visual, head


@TRAINER_REGISTRY.register()
class FineTune(HeadTrainer):
    """Trains from pixels, on its own copy of CLIP: the shared one must stay zero-shot CLIP."""

    model_name = "finetuned"
    head_key = "head.weight"
    frozen_image_tower = False

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.HEAD.PREC == "fp16":
            raise UserError("TRAINER.HEAD.PREC fp16 would train the tower's own weights in half: set amp or bf16")

    def build_backbone(self) -> None:
        """Load a CLIP that nothing else in the process holds."""
        self.clip = build_clip_from_cfg(self.cfg, device=self.device)
        check_input(self.cfg, self.clip)
        if not isinstance(getattr(self.clip.module, "visual", None), nn.Module):
            raise UserError(f"{self.clip.name} keeps its image tower in no module `visual`: it cannot be fine-tuned")

    def build_trained(self) -> FineTuned:
        return FineTuned(self.clip.module.visual.requires_grad_(True), LinearHead(self.zero_shot_head()))

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Batch norm keeps CLIP's statistics: they would belong to no point of a path between weights."""
        super().set_model_mode(mode, names)
        self.model.apply(set_bn_to_eval)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, D) of images (B, 3, H, W), with gradient."""
        with self.precision.autocast():
            return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    @torch.no_grad()
    def zero_shot_weights(self) -> dict[str, Tensor]:
        """w1: CLIP's own image tower, as the shared copy holds it, and the zero-shot classifier."""
        shared = build_clip_from_cfg(self.cfg, device=self.device, cached=True)
        tower = {f"visual.{name}": value.detach() for name, value in shared.module.visual.named_parameters()}
        return tower | {self.head_key: self.zero_shot_head()}
