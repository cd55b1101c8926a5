"""PromptSRC (Khattak et al., arXiv 2307.06948): prompts deep in both towers, held near CLIP's own features.

    loss = CE + 25 mean|t - t0| + 10 mean|x - x0| + KL(zero-shot logits || prompted logits)

x, t image and text features with the prompts, x0, t0 those of CLIP, all of unit norm. The model is a weighted
sum of the prompts after every epoch. It is PromptKD's teacher, and evaluates IVLP's and MaPLe's weights too.
Letters: B images, C classes, D joint width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.clip import compiled, cosine_logits, text_classifier
from dassl.config import Key
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.precision import precision_key
from mergetune.clip_trainer import ClipTrainer
from mergetune.models.deep_prompts import DeepPromptedClip, keep_prompts
from mergetune.models.prompts import context_words
from mergetune.models.student import PROMPTSRC_FOLDER, distil_loader, distillation
from mergetune.models.templates import IMAGENET

N_TEMPLATES = 60  # of CLIP's 80: as many as the authors average; which, their paper does not say


@TRAINER_REGISTRY.register()
class PromptSRC(ClipTrainer):
    """Cross-entropy with the three terms of self-regulation; the frozen image features come from the bank."""

    CONFIG = "PROMPTSRC"
    model_name = PROMPTSRC_FOLDER
    learns_prompts = True
    kept_keys = ("OPTIM.MAX_EPOCH", "TRAINER.PROMPTSRC.GPA_")  # the weights of the sum
    frozen_image_tower = False  # its prompts train

    KEYS = {
        "N_CTX_VISION": Key(4, "image vectors a block", ge=1),
        "N_CTX_TEXT": Key(4, "context vectors; CTX_INIT's words set it", ge=1),
        "CTX_INIT": Key("a photo of a", "as CoOp's", also=bool),
        "PROMPT_DEPTH_VISION": Key(9, "blocks with prompts, from the first", ge=1),
        "PROMPT_DEPTH_TEXT": Key(9, "likewise", ge=1),
        "TEXT_LOSS_WEIGHT": Key(25.0, "of mean|t - t0|", ge=0, role="training"),
        "IMAGE_LOSS_WEIGHT": Key(10.0, "of mean|x - x0|", ge=0, role="training"),
        "LOGIT_LOSS_WEIGHT": Key(1.0, "of the divergence from zero-shot logits", ge=0, role="training"),
        "GPA_MEAN": Key(15.0, "of the normal density over epochs (from 1) that weights the sum", role="training"),
        "GPA_STD": Key(1.0, "of that density", gt=0, role="training"),
        "PREC": precision_key("amp"),
    }

    def build_trained(self) -> DeepPromptedClip:
        settings = self.cfg.TRAINER.PROMPTSRC
        return DeepPromptedClip(
            self.clip,
            self.classnames,
            n_image=settings.N_CTX_VISION,
            n_text=settings.N_CTX_TEXT,
            image_depth=settings.PROMPT_DEPTH_VISION,
            text_depth=settings.PROMPT_DEPTH_TEXT,
            words=context_words(settings.CTX_INIT),
        )

    def build_model(self) -> None:
        super().build_model()
        settings = self.cfg.TRAINER.PROMPTSRC
        self.total = WeightedSum(settings.GPA_MEAN, settings.GPA_STD, self.max_epoch)

    def before_train(self) -> None:
        rows = [text_classifier(self.clip, self.classnames, [template]) for template in IMAGENET[:N_TEMPLATES]]
        self.text0 = F.normalize(torch.stack(rows).float().mean(dim=0), dim=-1)  # t0 (C, D), of the raw mean
        super().before_train()

    def use_feature_bank(self, name: str, *, is_train: bool) -> None:
        """Training images come with CLIP's own features of the same view."""
        if is_train:
            loader = distil_loader(self.cfg, getattr(self, name), {"zero_shot": self.clip}, self.precision.autocast)
            setattr(self, name, loader)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, D) with the prompts; gradients reach them."""
        with self.precision.autocast():
            return F.normalize(self.model.encode_image(images).float(), dim=-1)

    def text_features(self) -> Tensor:
        return self.model.encode_classes()

    def losses(self, batch: dict) -> dict[str, Tensor]:
        settings, scale = self.cfg.TRAINER.PROMPTSRC, self.clip.logit_scale
        images, labels = self.parse_batch_train(batch)
        image, text = self.image_features(images), F.normalize(self.text_features().float(), dim=-1)
        image0 = F.normalize(batch["zero_shot"].to(self.device, non_blocking=True).float(), dim=-1)
        logits = compiled(cosine_logits, self.clip)
        prompted, zero_shot = logits(image, text, scale), logits(image0, self.text0, scale)
        return {
            "ce": self.cross_entropy(image, text, labels),
            "text": settings.TEXT_LOSS_WEIGHT * F.l1_loss(text, self.text0),
            "image": settings.IMAGE_LOSS_WEIGHT * F.l1_loss(image, image0),
            "kl": settings.LOGIT_LOSS_WEIGHT * distillation(zero_shot, prompted),
        }

    def after_epoch(self) -> None:
        """After the last epoch the sum is the model: it is validated, saved and tested."""
        self.total.add(self.epoch + 1, self.model.state_dict())
        if self.epoch + 1 == self.max_epoch:
            self.model.load_state_dict(self.total.state_dict())
        super().after_epoch()

    def drop_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's own weights in the files of others are not loaded."""
        return keep_prompts(super().drop_keys(state))

    def metadata(self) -> dict:
        words = self.model.prompt_learner.words or "random vectors"
        return super().metadata() | {"templates": f"learned prompts in both towers, from {words!r}"}


class WeightedSum:
    """Sum of state dicts over epochs 1 .. `epochs`, weighted by a normal density, the weights' sum being 1.

    It has a state dict, so a resumed run goes on with it.
    """

    def __init__(self, mean: float, deviation: float, epochs: int):
        steps = torch.arange(1, epochs + 1, dtype=torch.float64)
        self.weights = torch.softmax(-((steps - mean) ** 2) / (2 * deviation**2), dim=0).tolist()
        self._sum: dict[str, Tensor] = {}

    def add(self, epoch: int, state: Mapping[str, Tensor]) -> None:
        """Add the weights as they are after `epoch`, counted from 1."""
        weight = self.weights[epoch - 1]
        for name, value in state.items():
            before = self._sum.get(name, torch.zeros_like(value))
            self._sum[name] = before.to(value.device) + weight * value.detach()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._sum)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sum = dict(state)
