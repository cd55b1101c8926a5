"""One way of fusing, in a process of its own: a stream of random deltas in the shapes of CLIP, and its clocks."""

import copy
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from condu.delta import Trigger, unify
from condu.fusion import Fusion
from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb
from tests.fixtures.deltas import trigger_of, unpacked

LIMIT = 1e-6
SIZES = {  # width, layers and positions of the image and the text tower, joint width, vocabulary
    "vit_b16": ((768, 12, 197), (512, 12, 77), 512, 49408),
    "small": ((192, 6, 37), (128, 4, 77), 128, 49408),
    "tiny": ((16, 2, 5), (16, 1, 7), 8, 50),
}

_stream: "Stream"


class Stream:
    """The fusion of `tasks` random deltas."""

    def __init__(self, model: str):
        self.shapes = shapes(*SIZES[model])
        self.fusion = Fusion()

    def delta(self, task: int) -> dict[str, Tensor]:
        """Normal values of 1e-3, the same in every process."""
        g = torch.Generator().manual_seed(task)
        return {name: torch.empty(shape).normal_(0, 1e-3, generator=g) for name, shape in self.shapes.items()}

    def grow(self, tasks: int) -> None:
        """Up to so many tasks."""
        for task in range(len(self.fusion.tasks) + 1, tasks + 1):
            self.fusion.absorb(str(task), self.delta(task))

    def grow_by(self, before: Fusion, delta: dict[str, Tensor]) -> None:
        """`before` and one task more, which writes to no tensor of `before`."""
        fusion = copy.copy(before)
        fusion.absorb(str(len(before.tasks) + 1), delta)
        self.fusion = fusion


def shapes(image: tuple, text: tuple, joint: int, vocabulary: int) -> dict[str, tuple]:
    """The trained tensors of a CLIP with a ViT: 149,620,736 values for ViT-B/16."""
    found = {
        "conv1": (image[0], 3, 16, 16), "class": (image[0],), "pre.weight": (image[0],), "pre.bias": (image[0],),
        "image.projection": (image[0], joint), "tokens": (vocabulary, text[0]), "text.projection": (text[0], joint),
    }  # fmt: skip
    for tower, (width, layers, positions) in (("image", image), ("text", text)):
        found |= {f"{tower}.positions": (positions, width)}
        found |= {f"{tower}.ln.weight": (width,), f"{tower}.ln.bias": (width,)}
        for layer in range(layers):
            block = f"{tower}.{layer}"
            matrices = {
                "qkv": (3 * width, width),
                "out": (width, width),
                "fc": (4 * width, width),
                "proj": (width, 4 * width),
            }
            for name, shape in matrices.items():
                found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            for norm in ("ln_1", "ln_2"):
                found |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    return found


def open_stream(model: str, threads: int) -> None:
    """An empty stream."""
    global _stream
    torch.set_num_threads(threads)
    _stream = Stream(model)


def absorb(tasks: int, repeats: int) -> dict:
    """Seconds, peak memory and bytes of absorbing task number `tasks`, and what else the state costs then."""
    _stream.grow(tasks - 1)
    before, delta = _stream.fusion, _stream.delta(tasks)
    read = [*delta.values(), *before.unified.values(), *(bits for mask in before.masks for bits in mask.values())]
    copy_s = median(clock(lambda: [value.clone() for value in read]) for _ in range(repeats))
    resident = resident_mb()
    reset_peak()
    times = [clock(lambda: _stream.grow_by(before, delta))]
    extra = peak_mb() - resident
    times += [clock(lambda: _stream.grow_by(before, delta)) for _ in range(repeats - 1)]
    return {"absorb_s": median(times), "copy_s": copy_s, "extra_mb": extra, **disk(), **expert(delta, repeats)}


def disk() -> dict:
    """Bytes of the state, and seconds to write as many and see them on the disk."""
    tensors, _ = _stream.fusion.state()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state.safetensors")
        save_file(tensors, path)
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            content = file.read()
        os.remove(path)

        def write() -> None:
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        return {"disk_mb": size / 1e6, "write_s": clock(write)}


def expert(pretrained: dict[str, Tensor], repeats: int) -> dict:
    """Seconds to write one expert's weights, and to clone the pretrained ones."""
    out = {name: torch.zeros_like(value) for name, value in pretrained.items()}
    task = _stream.fusion.tasks[0]
    written = [clock(lambda: _stream.fusion.add_to(task, pretrained, out)) for _ in range(repeats)]
    cloned = [clock(lambda: [value.clone() for value in pretrained.values()]) for _ in range(repeats)]
    return {"expert_s": median(written), "clone_s": median(cloned)}


def plain(tasks: int) -> dict:
    """Seconds and peak memory of decoupling all old tasks and unifying them with one more; how absorb differs."""
    _stream.grow(tasks - 1)
    fusion, delta = _stream.fusion, _stream.delta(tasks)
    old = [trigger_of(fusion, task) for task in fusion.tasks]
    resident = resident_mb()
    reset_peak()
    start = time.perf_counter()
    deltas = [*(trigger.decouple(fusion.unified) for trigger in old), delta]
    unified, triggers = unify(deltas)
    seconds, extra = time.perf_counter() - start, peak_mb() - resident
    fusion.absorb(str(tasks), delta)
    return {"plain_s": seconds, "plain_mb": extra, **compare(deltas, unified, triggers)}


def compare(deltas: list[dict], unified: dict[str, Tensor], triggers: list[Trigger]) -> dict:
    """The largest differences of the stream to the plain result, and the faults among them."""
    fusion = _stream.fusion
    scale = max(abs(ours / own.scale - 1) for ours, own in zip(fusion.scales, triggers, strict=True))
    weight = masks = 0
    for name, value in unified.items():
        terms = torch.stack([delta[name] for delta in deltas])
        clear = terms.sum(0).abs() > LIMIT * terms.abs().amax(0)
        del terms
        apart = ((fusion.unified[name] - value).abs() / value.abs().clamp_min(1e-30))[clear]
        weight = max(weight, apart.max().item() if apart.numel() else 0.0)
        for ours, own in zip(fusion.masks, triggers, strict=True):
            mask = unpacked(ours[name], value.shape)
            masks += int((mask != own.mask[name])[clear].count_nonzero())
    found = {"weights": weight, "scales": scale, "masks": masks}
    allowed = {"weights": LIMIT, "scales": LIMIT, "masks": 0}
    faults = [f"the {k} differ by {v:.2g}, allowed {allowed[k]:g}" for k, v in found.items() if not v <= allowed[k]]
    return {"differences": found, "faults": faults}


def clock(call: Callable) -> float:
    """Seconds of one call, what it returns freed afterwards."""
    start = time.perf_counter()
    kept = call()
    seconds = time.perf_counter() - start
    del kept
    return seconds
