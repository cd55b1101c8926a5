"""CoOp (Zhou et al., arXiv 2109.01134): the words around the class name are learned, all else is frozen."""

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.clip import cosine_logits
from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from mergetune.frozen import FrozenClipTrainer
from mergetune.prompts import PromptLearner, context_words


@TRAINER_REGISTRY.register()
class CoOp(FrozenClipTrainer):
    """Cross-entropy on the learned prompt."""

    CONFIG = "COOP"
    model_name = "prompt_learner"  # the checkpoint's folder

    @classmethod
    def default_config(cls) -> CN:
        return CN(
            {
                "N_CTX": 16,  # context vectors
                "CSC": False,  # one context a class
                "CTX_INIT": False,  # False: random; True: "a photo of a"; or any words, which set N_CTX
                "CLASS_TOKEN_POSITION": "end",  # end, middle, front
                "PREC": "amp",  # fp32, fp16, amp, bf16
            }
        )

    def precision_mode(self) -> str:
        return self.cfg.TRAINER.COOP.PREC

    def build_model(self) -> None:
        self.build_backbone()
        self.model = self.build_prompts()
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(self.model_name, self.model, self.optim, self.sched)

    def build_prompts(self) -> PromptLearner:
        """The learner, at its initial context."""
        own = self.cfg.TRAINER.COOP
        return PromptLearner(
            self.clip,
            self.classnames,
            n_ctx=own.N_CTX,
            words=context_words(own.CTX_INIT),
            class_specific=own.CSC,
            position=own.CLASS_TOKEN_POSITION,
        )

    def text_features(self, ctx: Tensor | None = None) -> Tensor:
        """Raw class vectors (C, D) of the prompt, or of the prompt with another context."""
        return self.clip.encode_text_from_embeddings(self.model(ctx), self.model.tokens)

    def cross_entropy(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """CE of cosine logits; notes the accuracy for the log line."""
        logits = cosine_logits(image, text.float(), self.clip.logit_scale)
        self.note(acc=compute_accuracy(logits.detach(), labels)[0])
        return F.cross_entropy(logits, labels)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        images, labels = self.parse_batch_train(batch)
        return {"ce": self.cross_entropy(self.image_features(images), self.text_features(), labels)}

    def facts(self) -> dict:
        own = super().facts()
        words = self.model.words or f"{self.model.n_ctx} random vectors"
        return own | {"templates": f"learned prompt, from {words!r}"}

    @torch.no_grad()
    def class_vectors(self, ctx: Tensor | None = None) -> Tensor:
        """`text_features` in fp32, without gradient."""
        return self.text_features(ctx).float()
