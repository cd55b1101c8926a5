"""Task: a step of MERGETUNE on PromptKD (arXiv 2601.10497), a teacher of the student's size.

The released way encodes images and texts with the teacher again at each of ten path points, and the images
twice with the student. Written plainly, towers with the prompts in them, the texts at 77 tokens. The batch
statistics of the frozen student stay as stage 1 left them, in both ways.
Letters: B images, C classes, W width of a tower, E joint width, N context vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.clip.openai import clip_package
from tests.benchmarks.plain import unit
from tests.benchmarks.task import Runner, Task, Version, clip_towers, gradient_of
from tests.benchmarks.world import World, first_batch

DEPTH = {"vit_b16": 9, "small": 3}
KD, LAMBDA, BETA, POINTS = 1000.0, 100.0, 50.0, [0.1 * i for i in range(1, 11)]
TEACHER, STUDENT = "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx", "PromptKD/vit_b16_c2_ep20_batch8_4+4ctx"
BLOCK = "{}_encoder.transformer.resblocks.{}.VPT_shallow"


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of logits (B, C), over their number."""
    kl = F.kl_div(F.log_softmax(student, dim=1), F.softmax(teacher, dim=1), reduction="sum")
    return kl / student.numel()


class PlainKD:
    """module: an OpenAI CLIP, frozen, teacher and student alike; the states have the authors' names."""

    def __init__(self, module: nn.Module, classnames: list[str], teacher: dict, stage1: dict, start: dict):
        self.module, self.teacher, self.stage1 = module, teacher, stage1
        self.state = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        self.n_ctx = len(teacher["prompt_learner.ctx"])
        filler = " ".join(["X"] * self.n_ctx)
        self.tokens = clip_package().tokenize([f"{filler} {name.replace('_', ' ')}." for name in classnames])  # (C, 77)
        self.optim = torch.optim.SGD(self.state.values(), lr=1e-5, momentum=0.9, weight_decay=5e-4)

    def image(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E), with prompts behind the patches."""
        visual, count = self.module.visual, len(state["image_encoder.VPT"])
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(torch.cat([x, state["image_encoder.VPT"].expand(len(x), -1, -1)], dim=1)).transpose(0, 1)
        for j, block in enumerate(visual.transformer.resblocks):
            own = state.get(BLOCK.format("image", j))
            if own is not None:
                x = torch.cat([x[:-count], own[:, None].expand(-1, len(images), -1)])
            x = block(x)
        return visual.ln_post(x[0]) @ visual.proj

    @torch.no_grad()
    def text(self) -> Tensor:
        """The teacher's class vectors (C, E), unit norm."""
        module, state, places = self.module, self.teacher, slice(1, 1 + self.n_ctx)
        x = module.token_embedding(self.tokens)
        x[:, places] = state["prompt_learner.ctx"]
        x = (x + module.positional_embedding).transpose(0, 1)
        for j, block in enumerate(module.transformer.resblocks):
            own = state.get(BLOCK.format("text", j))
            if own is not None:
                x[places] = own[:, None]
            x = block(x)
        x = module.ln_final(x.transpose(0, 1))
        return unit(x[torch.arange(len(x)), self.tokens.argmax(dim=-1)] @ module.text_projection)

    def student(self, state: dict[str, Tensor], images: Tensor, statistics: dict | None = None) -> Tensor:
        """Projected unit-norm features (B, E); statistics: running ones in the place of the batch's."""
        trans = "VPT_image_trans.conv1.{}"

        def part(layer: int, source: dict = state) -> tuple[Tensor, Tensor]:
            return source[trans.format(f"{layer}.weight")], source[trans.format(f"{layer}.bias")]

        x = F.conv2d(self.image(state, images)[:, :, None, None], *part(0))
        running = [statistics and statistics[trans.format(f"1.running_{name}")] for name in ("mean", "var")]
        x = F.relu(F.batch_norm(x, *running, *part(1), training=statistics is None))
        return unit(F.conv2d(x, *part(3))[:, :, 0, 0])

    def teacher_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) and class vectors (C, E), through both of the teacher's towers."""
        with torch.no_grad():
            text = self.text()
            return self.module.logit_scale.exp() * unit(self.image(self.teacher, images)) @ text.t(), text

    def step(self, images: Tensor) -> float:
        """One step of training; the loss."""
        scale = self.module.logit_scale.exp()
        teacher, text = self.teacher_logits(images)
        loss = KD * divergence(teacher, scale * self.student(self.state, images) @ text.t())
        gaps = torch.cat([(value - self.stage1[name]).flatten() for name, value in self.state.items()])
        loss = loss + LAMBDA * gaps.square().mean()
        now = self.student(self.state, images)
        with torch.no_grad():
            first = self.student(self.stage1, images, statistics=self.stage1)
        for t in POINTS:
            teacher, text = self.teacher_logits(images)
            mixed = (1 - t) * first + t * now
            loss = loss + BETA / len(POINTS) * divergence(teacher, scale * mixed @ text.t())
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return float(loss.detach())


def build(world: World, name: str, config: str, **keys: object):
    """Our trainer, prompts where they fit the model, the teacher on the student's own CLIP."""
    node = "PROMPTSRC" if name == "PromptSRC" else "PROMPTKD"
    own = {"PREC": "fp32", "PROMPT_DEPTH_VISION": DEPTH[world.model], "PROMPT_DEPTH_TEXT": DEPTH[world.model]}
    if node == "PROMPTKD":
        own["TEACHER_NAME"] = world.weights
    return world.trainer(name, config, **{f"TRAINER__{node}__{key}": value for key, value in own.items()}, **keys)


def student_state(world: World, **keys: object) -> dict[str, Tensor]:
    """A stage-1 student whose running statistics are no longer the initial ones."""
    state = build(world, "PromptKD", STUDENT, **keys).model.state_dict()
    state["VPT_image_trans.conv1.1.running_mean"].normal_()
    return state


def training(world: World, version: str) -> Runner:
    """A step of the released form with its backward pass and its update."""
    torch.manual_seed(1)
    runs = world.stage1("teacher", lambda: build(world, "PromptSRC", TEACHER).model.state_dict())
    keys = {"TRAINER__PROMPTKD__TEACHER_DIR": runs / "teacher", "FEATURES__VIEWS": 1}
    stage1 = world.stage1("VLPromptLearner", lambda: student_state(world, **keys))
    trainer = build(world, "PromptKD_LMC", "PromptKD_LMC/released", stage1=stage1, **keys)
    with torch.no_grad():  # apart from stage 1, or the path loss would be the plain one
        g = torch.Generator().manual_seed(2)
        for value in trainer.model.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=g).to(value))
    trainer.use_feature_bank("train_loader_x", is_train=True)
    batch, module = first_batch(trainer.train_loader_x), trainer.clip.module
    parameters = dict(trainer.model.named_parameters())
    if version == "plain":
        prompts = torch.load(runs / "teacher" / "model.pth.tar-1", weights_only=True)["state_dict"]
        plain = PlainKD(module, trainer.classnames, prompts, trainer.student2.state_dict(), parameters)
        parameters = plain.state

    def call() -> float:
        if version == "plain":
            return plain.step(batch["img"])
        return float(trainer.forward_backward(batch)["loss"])

    def result() -> dict:
        loss, gradient = gradient_of(parameters.values(), call)
        return {"index": batch["index"].tolist(), "loss": [loss], "gradient": gradient}

    return Runner(call, result, clip_towers(module), world.batch)


TASKS = {
    "PromptKD_LMC": Task(
        training,
        {
            # one teacher pass before and one at each of ten points, two of the student, one of the frozen student
            "plain": Version({"image": (14, 2), "text": (11, 0)}),
            "bank": Version({"image": (1, 1), "text": (0, 0)}, faster=8),
        },
        batch=4,
    ),
}
