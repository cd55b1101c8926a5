"""One version of one task, run in a process of its own, so that its peak memory is its own.

`open_runner` prepares, `first` checks, `timed` and `profiled` measure; the process keeps the runner between
calls. Tower passes are counted by hooks on CLIP's own modules, the same for every version.
"""

import contextlib
import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from dassl.clip.features import BankDataset
from tests.benchmarks.plain import PlainCoOp, PlainLMC
from tests.benchmarks.world import World, first_batch

CACHED = 2000  # test features that one evaluation from the bank goes through
MATRIX = re.compile(r"aten::_*(mm|bmm|addmm|baddbmm|matmul|linear|(mkldnn_|slow_)?conv|scaled_dot_product)")
# (task, version): image passes, text passes, text passes with gradient
PASSES = {
    ("CoOp_LMC", "plain"): (6, 3, 2),
    ("CoOp_LMC", "pixels"): (1, 1, 1),
    ("CoOp_LMC", "bank"): (0, 1, 1),
    ("CoOp", "plain"): (1, 1, 1),
    ("CoOp", "pixels"): (1, 1, 1),
    ("CoOp", "bank"): (0, 1, 1),
    ("evaluation", "plain"): (1, 1, 0),
    ("evaluation", "bank"): (0, 1, 0),
}


@dataclass
class Runner:
    """call: does one step, or one evaluation of `images` images. result: {name: tensor} of the first call."""

    call: Callable[[], object]
    result: Callable[[], dict]
    module: nn.Module
    images: int


@contextlib.contextmanager
def count_passes(module: nn.Module) -> Iterator[Counter]:
    """Counts `image`, `text` and `text with gradient` passes of an OpenAI CLIP while inside."""
    seen = Counter()

    def text(_module, _inputs, output):
        seen["text"] += 1
        seen["text with gradient"] += output.requires_grad

    handles = [
        module.visual.register_forward_hook(lambda *_: seen.update(["image"])),
        module.transformer.register_forward_hook(text),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def training(world: World, task: str, version: str) -> Runner:
    """A step with its backward pass and its update."""
    trainer = world.trainer(task, FEATURES__VIEWS=int(version == "bank"))
    trainer.route("train_loader_x", is_train=True)
    batch = first_batch(trainer.train_loader_x)
    images, labels = trainer.parse_batch_train(batch)
    module, ctx = trainer.clip.module, trainer.model.ctx
    if version == "plain":
        start, stage1 = world.contexts["start"], world.contexts["stage1"]
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
        gradients = []
        handle = ctx.register_hook(gradients.append)  # of the very step, whenever the optimiser is cleared
        loss = call()
        handle.remove()
        gradient = sum(gradients).flatten().tolist()
        return {"index": batch["index"].tolist(), "loss": [loss], "gradient": gradient}

    return Runner(call, result, module, world.batch)


def evaluation(world: World, version: str) -> Runner:
    """A model's accuracy: one test batch from pixels, or CACHED test features that are there already."""
    trainer = world.trainer("CoOp", FEATURES__TEST=version == "bank")
    trainer.route("test_loader", is_train=False)
    batch = next(iter(trainer.test_loader))
    images, _ = trainer.parse_batch_test(batch)
    if version == "plain":
        plain = PlainCoOp(trainer.clip.module, trainer.classnames, world.contexts["start"])

        def result() -> dict:
            return {"index": batch["index"].tolist(), "logits": plain.evaluate(images).flatten().tolist()}

        return Runner(lambda: plain.evaluate(images), result, trainer.clip.module, len(images))

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

    return Runner(lambda: trainer.test("test"), result, trainer.clip.module, len(trainer.test_loader.dataset))


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


# Called in the runner's own process

_runner: Runner


def open_runner(world: World, task: str, version: str, threads: int) -> int:
    """Prepare; returns the images a call goes through."""
    global _runner
    torch.set_num_threads(threads)
    with quiet():
        _runner = evaluation(world, version) if task == "evaluation" else training(world, task, version)
    return _runner.images


def first() -> dict:
    """One counted call: passes, values to compare, peak memory in MB."""
    reset_peak()
    with quiet(), count_passes(_runner.module) as seen:
        values = _runner.result()
    passes = seen["image"], seen["text"], seen["text with gradient"]
    return {"passes": passes, "peak_mb": peak_mb(), "values": values}


def timed(calls: int) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of each call; CPU over all threads."""
    times = []
    with quiet():
        for _ in range(calls):
            wall, cpu = time.perf_counter(), time.process_time()
            _runner.call()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def profiled() -> float:
    """Share of one call's operator time spent in matrix products."""
    with quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _runner.call()
    operators = profiler.key_averages()
    total = sum(operator.self_cpu_time_total for operator in operators)
    return sum(operator.self_cpu_time_total for operator in operators if MATRIX.match(operator.key)) / total


def quiet():
    """Trainers log to stdout, where the benchmark's table goes."""
    return contextlib.redirect_stdout(io.StringIO())


def reset_peak() -> None:
    """Forget the peak of the preparation; Linux alone knows how, elsewhere it stays included."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """High-water mark of resident memory since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
