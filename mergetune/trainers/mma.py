"""MMA (Yang et al., "MMA: Multi-Modal Adapter", CVPR 2024): adapters in both towers, all else is frozen."""

import torch.nn.functional as F
from torch import Tensor

from dassl.clip import layout_of
from dassl.config import Key
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.precision import precision_key
from mergetune.clip_trainer import ClipTrainer
from mergetune.models.adapters import MultiModalAdapters


@TRAINER_REGISTRY.register()
class MultiModalAdapter(ClipTrainer):
    """Cross-entropy, the adapters of both towers trained; images come as pixels, for their features change."""

    label = "MMA"
    CONFIG = "MMADAPTER"
    model_name = "adapter_learner"
    held_keys = ("TRAINER.MMADAPTER.TEXT_CTX_INIT", "TRAINER.MMADAPTER.ADAPTER_SCALE")
    frozen_image_tower = False

    KEYS = {
        "TEXT_CTX_INIT": Key("a photo of a", "words before the class name"),
        "PREC": precision_key("amp"),
        "ADAPTER_START": Key(5, "first block with an adapter, counted from 1", ge=1),
        "ADAPTER_END": Key(12, "last one", ge=1),
        "ADAPTER_DIM": Key(32, "width of an adapter", ge=1),
        "ADAPTER_SCALE": Key(0.001, "of what it adds"),
    }

    @property
    def prompt(self) -> str:
        """The text that a class name goes into."""
        return f"{self.cfg.TRAINER.MMADAPTER.TEXT_CTX_INIT.replace('_', ' ').strip()} {{}}.".strip()

    def build_trained(self) -> MultiModalAdapters:
        """The adapters; tokens (C, L) of the prompts, cut behind the longest, are fixed."""
        settings = self.cfg.TRAINER.MMADAPTER
        texts = [self.prompt.format(name.replace("_", " ")) for name in self.classnames]
        self.tokens = self.clip.shorten(self.clip.tokenize(texts))
        layout_of(self.clip, self.tokens, None)  # looks at the tokens now: in a step that would wait for a GPU
        return MultiModalAdapters(
            self.clip,
            first=settings.ADAPTER_START,
            last=settings.ADAPTER_END,
            dim=settings.ADAPTER_DIM,
            scale=settings.ADAPTER_SCALE,
        )

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, D) of images (B, 3, H, W) through the adapters."""
        with self.precision.autocast(), self.model.attached(self.clip):
            return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def text_features(self) -> Tensor:
        """Raw class vectors (C, D) through the adapters, as they are now."""
        with self.model.attached(self.clip):
            return self.clip.encode_text(self.tokens, shared=None)

    def zero_shot_weights(self) -> dict[str, Tensor]:
        """w1: the adapters as they are, with up-projections at 0: exactly CLIP."""
        return self.model.at_zero()

    def zero_shot_prompt(self, space: str) -> str:
        """Without adapters the model is CLIP with its own prompt."""
        return self.prompt if space == "weights" else super().zero_shot_prompt(space)

    def metadata(self) -> dict:
        settings = self.cfg.TRAINER.MMADAPTER
        return super().metadata() | {
            "templates": f"{self.prompt!r} through adapters",
            "adapter_blocks": [settings.ADAPTER_START, settings.ADAPTER_END],
        }
