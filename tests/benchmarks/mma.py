"""Task: a step of MERGETUNE on MMA (arXiv 2601.10497), adapters in both towers, the released one-sided form.

The released way encodes the images again at each path point and keeps every graph, and the texts twice, at 77
tokens. Written plainly, blocks patched by hand, with upstream MMA's gradient scaling.
Letters: B images, C classes, L tokens, W width of a tower, D joint width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.clip.openai import clip_package
from tests.benchmarks.plain import POINTS, unit
from tests.benchmarks.task import Runner, Task, Version, clip_towers, gradient_of
from tests.benchmarks.world import World, first_batch

RANGE = {"vit_b16": (5, 12), "small": (2, 4)}  # blocks with adapters, counted from 1
SCALE, BETA = 0.001, 10.0


class GradientScale(torch.autograd.Function):
    """Identity; the gradient times `factor`."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.factor, None


class PlainMMA:
    """module: an OpenAI CLIP, frozen; state: adapters by the authors' names."""

    def __init__(self, module: nn.Module, classnames: list[str], state: dict[str, Tensor], template: str):
        self.module = module
        self.state = {name: nn.Parameter(value.clone()) for name, value in state.items()}
        names = [name.replace("_", " ") for name in classnames]
        tokenize = clip_package().tokenize
        self.tokens = tokenize([f"a photo of a {name}." for name in names])  # (C, 77)
        with torch.no_grad():
            self.zero_shot = unit(module.encode_text(tokenize([template.format(name) for name in names])))
        self.optim = torch.optim.SGD(self.state.values(), lr=1e-5, momentum=0.9, weight_decay=5e-4)

    def layer(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def transformer(self, tower: str, blocks: nn.Sequential, x: Tensor) -> Tensor:
        """x (L, B, W) through all blocks and the adapters beside some."""
        for i, block in enumerate(blocks, 1):
            normed = block.ln_1(x)
            x = x + block.attention(normed)
            x = x + block.mlp(block.ln_2(x))
            if f"shared_adapter.{i}.0.weight" in self.state:
                inner = GradientScale.apply(normed, SCALE)
                inner = F.relu(self.layer(f"{tower}_adapter.{i}.down.0", inner))
                inner = F.relu(self.layer(f"shared_adapter.{i}.0", inner))
                x = x + GradientScale.apply(self.layer(f"{tower}_adapter.{i}.up", inner), 1 / SCALE) * SCALE
        return x

    def image(self, images: Tensor) -> Tensor:
        """Unit-norm features (B, D)."""
        visual = self.module.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = self.transformer("visual", visual.transformer.resblocks, visual.ln_pre(x).transpose(0, 1))
        return unit(visual.ln_post(x[0]) @ visual.proj)

    def text(self) -> Tensor:
        """Raw class vectors (C, D)."""
        module = self.module
        x = (module.token_embedding(self.tokens) + module.positional_embedding).transpose(0, 1)
        x = module.ln_final(self.transformer("text", module.transformer.resblocks, x).transpose(0, 1))
        return x[torch.arange(len(x)), self.tokens.argmax(dim=-1)] @ module.text_projection

    def cross_entropy(self, images: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """Through the image tower."""
        return F.cross_entropy(self.module.logit_scale.exp() * self.image(images) @ unit(text).t(), labels)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step of training; the loss."""
        task = self.cross_entropy(images, self.text(), labels)
        start = self.text()
        path = [self.cross_entropy(images, start + t * (self.zero_shot - start), labels) for t in POINTS]
        loss = task + BETA * torch.stack(path).mean()
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return float(loss.detach())


def build(world: World, name: str, config: str, **keys: object):
    """Our trainer, its adapters where they fit the model."""
    first, last = RANGE[world.model]
    own = {"PREC": "fp32", "ADAPTER_START": first, "ADAPTER_END": last, "ADAPTER_SCALE": SCALE}
    pairs = {f"TRAINER__MMADAPTER__{key}": value for key, value in own.items()}
    return world.trainer(name, config, **pairs, **keys)


def training(world: World, version: str) -> Runner:
    """A step of the released form with its backward pass and its update."""
    torch.manual_seed(1)
    stage1 = world.stage1(
        "adapter_learner", lambda: build(world, "MultiModalAdapter", "MultiModalAdapter/vit_b16_ep5").model.state_dict()
    )
    trainer = build(world, "MMA_LMC", "MMA_LMC/released", stage1=stage1)
    batch = first_batch(trainer.train_loader_x)
    images, labels = trainer.parse_batch_train(batch)
    module, parameters = trainer.clip.module, list(trainer.model.parameters())
    if version == "plain":
        plain = PlainMMA(module, trainer.classnames, trainer.model.state_dict(), trainer.template)
        parameters = list(plain.state.values())

    def call() -> float:
        if version == "plain":
            return plain.step(images, labels)
        return float(trainer.forward_backward(batch)["loss"])

    def result() -> dict:
        loss, gradient = gradient_of(parameters, call)
        return {"index": batch["index"].tolist(), "loss": [loss], "gradient": gradient}

    return Runner(call, result, clip_towers(module), world.batch)


TASKS = {
    "MMA_LMC": Task(
        training,
        {
            "plain": Version({"image": (6, 6), "text": (2, 2)}),
            "pixels": Version({"image": (1, 1), "text": (1, 1)}, faster=5, smaller=3),
        },
        batch=16,
    )
}
