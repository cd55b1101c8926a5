"""Tasks on a frozen image tower: a step of CoOp, one of its stage 2, and an evaluation."""

import torch
from torch.utils.data import DataLoader

from dassl.clip.feature_bank import BankDataset
from tests.benchmarks.plain import PlainCoOp, PlainLMC
from tests.benchmarks.task import Runner, Task, Version, clip_towers, gradient_of
from tests.benchmarks.world import MODELS, World, first_batch

CACHED = 2000  # test features that one evaluation from the bank goes through
N_CTX = 4
CONFIGS = {"CoOp": "CoOp/vit_b16_ep100_ctxv1", "CoOp_LMC": "CoOp_LMC/released"}


def contexts(world: World) -> dict[str, torch.Tensor]:
    """stage1: w2; start: where stage 2 is timed. Apart, or the path loss would be the plain one."""
    g = torch.Generator().manual_seed(1)
    width = MODELS[world.model]["transformer_width"]
    stage1, step = (0.02 * torch.randn(N_CTX, width, generator=g) for _ in range(2))  # size of embeddings
    return {"stage1": stage1, "start": stage1 + step}


def build(world: World, name: str, **keys: object):
    """Our trainer, its context at `start`."""
    stage1 = world.stage1("prompt_learner", lambda: {"ctx": contexts(world)["stage1"]})
    trainer = world.trainer(name, CONFIGS[name], stage1=stage1, TRAINER__COOP__PREC="fp32", **keys)
    with torch.no_grad():
        trainer.model.ctx.copy_(contexts(world)["start"])
    return trainer


def training(world: World, task: str, version: str) -> Runner:
    """A step with its backward pass and its update."""
    trainer = build(world, task, FEATURES__VIEWS=int(version == "bank"))
    trainer.use_feature_bank("train_loader_x", is_train=True)
    batch = first_batch(trainer.train_loader_x)
    images, labels = trainer.parse_batch_train(batch)
    module, ctx = trainer.clip.module, trainer.model.ctx
    if version == "plain":
        start, stage1 = contexts(world)["start"], contexts(world)["stage1"]
        if task == "CoOp":
            plain = PlainCoOp(module, trainer.classnames, start)
        else:
            plain = PlainLMC(module, trainer.classnames, start, stage1, trainer.template)
        ctx = plain.ctx

    def call() -> float:
        if version == "plain":
            return float(plain.step(images, labels))
        return float(trainer.forward_backward(batch)["loss"])

    def result() -> dict:
        loss, gradient = gradient_of([ctx], call)
        return {"index": batch["index"].tolist(), "loss": [loss], "gradient": gradient}

    return Runner(call, result, clip_towers(module), world.batch)


def evaluation(world: World, version: str) -> Runner:
    """A model's accuracy: one test batch from pixels, or CACHED test features that are there already."""
    trainer = build(world, "CoOp", FEATURES__TEST=version == "bank")
    trainer.use_feature_bank("test_loader", is_train=False)
    batch = next(iter(trainer.test_loader))
    images, _ = trainer.parse_batch_test(batch)
    towers = clip_towers(trainer.clip.module)
    if version == "plain":
        plain = PlainCoOp(trainer.clip.module, trainer.classnames, contexts(world)["start"])

        def result() -> dict:
            return {"index": batch["index"].tolist(), "logits": plain.evaluate(images).flatten().tolist()}

        return Runner(lambda: plain.evaluate(images), result, towers, len(images))

    trainer.test_loader = tiled(trainer.test_loader, -(-CACHED // len(trainer.test_loader.dataset)))
    inference, seen = trainer.model_inference, []

    def spy(images):
        seen.append(inference(images))
        return seen[-1]

    def result() -> dict:
        trainer.model_inference = spy
        trainer.test("test")
        trainer.model_inference = inference
        return {"index": batch["index"].tolist(), "logits": seen[0].flatten().tolist()}

    return Runner(lambda: trainer.test("test"), result, towers, len(trainer.test_loader.dataset))


class Tiled:
    """A bank, several times over."""

    def __init__(self, bank, times: int):
        self.tensors = {name: value.repeat(times, 1) for name, value in bank.round().items()}

    def round(self, number: int = 0) -> dict:
        return self.tensors


def tiled(loader: DataLoader, times: int) -> DataLoader:
    """The loader of a bank with its rows `times` times over: 2,000 features for the price of 100."""
    dataset = BankDataset(Tiled(loader.dataset.bank, times), loader.dataset.data_source * times)
    return DataLoader(dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


TASKS = {
    "CoOp_LMC": Task(
        lambda world, version: training(world, "CoOp_LMC", version),
        {
            "plain": Version({"image": (6, 0), "text": (3, 2)}),
            "pixels": Version({"image": (1, 0), "text": (1, 1)}, faster=5),
            "bank": Version({"image": (0, 0), "text": (1, 1)}, faster=100),
        },
        batch=32,
    ),
    "CoOp": Task(
        lambda world, version: training(world, "CoOp", version),
        {
            "plain": Version({"image": (1, 0), "text": (1, 1)}),
            "pixels": Version({"image": (1, 0), "text": (1, 1)}),
            "bank": Version({"image": (0, 0), "text": (1, 1)}, faster=25),
        },
        batch=32,
    ),
    "evaluation": Task(
        evaluation,
        {
            "plain": Version({"image": (1, 0), "text": (1, 0)}),
            "bank": Version({"image": (0, 0), "text": (1, 0)}, faster=100),
        },
        batch=32,
        per_image=True,
    ),
}
