"""What a benchmark task is: versions of one call, the tower passes each stands for, what ours should gain.

A module of this package that has `TASKS: dict[str, Task]` is found by itself.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from dassl.clip import positionwise
from tests.benchmarks.world import World


@dataclass
class Runner:
    """call: does one step, or one evaluation of `images` images. result: {name: numbers} of the first call.

    towers: what passes are counted of, by name; a module that runs once in each pass, at its end.
    """

    call: Callable[[], object]
    result: Callable[[], dict[str, list]]
    towers: dict[str, nn.Module]
    images: int


@dataclass(frozen=True)
class Version:
    """passes: {tower: (passes, those with a graph for gradients)} of one call.

    faster, smaller: how many times less wall time and peak memory than `plain`, expected in the full setting
    on 2 quiet cores; None where nothing is expected.
    """

    passes: dict[str, tuple[int, int]]
    faster: float | None = None
    smaller: float | None = None


@dataclass(frozen=True)
class Task:
    """open: prepares a version, in that version's own process. versions: `plain` first, then ours.

    batch: images a step in the full setting. per_image: times are given per image.
    """

    open: Callable[[World, str], Runner]
    versions: dict[str, Version]
    batch: int
    per_image: bool = False


def all_tasks() -> dict[str, Task]:
    """The tasks of every module beside this one."""
    package = importlib.import_module(__package__)
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {name: task for module in modules for name, task in getattr(module, "TASKS", {}).items()}


def clip_towers(module: nn.Module) -> dict[str, nn.Module]:
    """Both towers of an OpenAI ViT, by their last norms, which plain loops over the blocks run too."""
    return {"image": module.visual.ln_post, "text": module.ln_final}


@contextlib.contextmanager
def count_passes(towers: dict[str, nn.Module]) -> Iterator[dict[str, list[int]]]:
    """{tower: [passes, those with a graph]} while inside."""
    counts = {name: [0, 0] for name in towers}

    def hook(name: str):
        def count(_module, _inputs, output: Tensor) -> None:
            counts[name][0] += 1
            counts[name][1] += output.requires_grad

        return positionwise(count)

    handles = [module.register_forward_hook(hook(name)) for name, module in towers.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def gradient_of(parameters: Iterable[Tensor], call: Callable[[], float]) -> tuple[float, list[float]]:
    """What `call` returns, and the gradients of its very step in one list, whenever the optimiser clears them."""
    parameters = list(parameters)
    sums = [0.0] * len(parameters)

    def hook(place: int):
        def add(gradient: Tensor) -> None:
            sums[place] = sums[place] + gradient.detach()

        return add

    handles = [value.register_hook(hook(i)) for i, value in enumerate(parameters)]
    value = call()
    for handle in handles:
        handle.remove()
    return value, [number for gradient in sums for number in gradient.flatten().tolist()]
