"""The released way of CoOp and of MERGETUNE's stage 2, to time ours against (arXiv 2109.01134, 2601.10497).

Every text is 77 tokens long; stage 2 encodes the images again at each path point, the frozen stage-1 prompt
at each step and the learned prompt twice. Written plainly, on the towers alone.
Letters: B images, C classes, W text width, D joint width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.clip.openai import clip_package

POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)
LAMBDA, BETA = 10.0, 1.0


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class PlainCoOp:
    """Cross-entropy on a learned prompt. module: an OpenAI CLIP, frozen; ctx: (N, W)."""

    def __init__(self, module: nn.Module, classnames: list[str], ctx: Tensor):
        self.module, self.names = module, [name.replace("_", " ") for name in classnames]
        self.ctx = nn.Parameter(ctx.clone())
        filler = " ".join(["X"] * len(ctx))
        self.tokens = clip_package().tokenize([f"{filler} {name}." for name in self.names])  # (C, 77)
        with torch.no_grad():
            embeddings = module.token_embedding(self.tokens)
        self.prefix, self.suffix = embeddings[:, :1], embeddings[:, 1 + len(ctx) :]
        self.optim = torch.optim.SGD([self.ctx], lr=1e-5, momentum=0.9, weight_decay=5e-4)

    def text(self, ctx: Tensor) -> Tensor:
        """Raw class vectors (C, D)."""
        module = self.module
        ctx = ctx.expand(len(self.names), -1, -1)
        prompts = torch.cat([self.prefix, ctx, self.suffix], dim=1)  # (C, 77, W)
        x = (prompts + module.positional_embedding).permute(1, 0, 2)
        x = module.ln_final(module.transformer(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), self.tokens.argmax(dim=-1)] @ module.text_projection

    def logits(self, images: Tensor, text: Tensor) -> Tensor:
        """(B, C), through the image tower."""
        return self.module.logit_scale.exp() * unit(self.module.encode_image(images)) @ unit(text).t()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(images, self.text(self.ctx)), labels)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of training; the loss."""
        loss = self.loss(images, labels)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """Logits of one test batch."""
        return self.logits(images, self.text(self.ctx))


class PlainLMC(PlainCoOp):
    """CE(w) + LAMBDA (1 - cos(w, w1)) + BETA mean_t CE(w2 + t (w - w2)), w1 from the data set's template."""

    def __init__(self, module: nn.Module, classnames: list[str], ctx: Tensor, ctx2: Tensor, template: str):
        super().__init__(module, classnames, ctx)
        self.ctx2 = ctx2
        with torch.no_grad():
            texts = clip_package().tokenize([template.format(name) for name in self.names])
            self.f1 = unit(module.encode_text(texts))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        text = self.text(self.ctx)
        task = F.cross_entropy(self.logits(images, text), labels)
        anchor = 1 - (unit(text) * self.f1).sum(dim=-1).mean()
        with torch.no_grad():
            start = self.text(self.ctx2)
        end = self.text(self.ctx)
        path = [F.cross_entropy(self.logits(images, start + t * (end - start)), labels) for t in POINTS]
        return task + LAMBDA * anchor + BETA * torch.stack(path).mean()
