"""Deltas of fine-tuned weights, and one unified delta from which each of them is read again (arXiv 2503.10705).

A delta is {name: fine-tuned - pretrained}. `unify` elects a sign and the largest agreeing magnitude of each
coordinate over the tasks, and leaves each task a trigger: the mask of the coordinates where the task has the
elected sign, and one scale that makes up for the magnitude. It is the definition, written plainly and with all
tasks in memory; `condu.fusion` is the same one task at a time.
Letters: T tasks, P values of all tensors together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dassl.merging.methods import elect

State = Mapping[str, Tensor]

SCALES = ("l1", "tensor_mean", "none")


@dataclass(frozen=True)
class Trigger:
    """What reads one task's delta from the unified one: `mask` {name: bool (*shape)} and `scale`."""

    mask: dict[str, Tensor]
    scale: float

    def decouple(self, unified: State) -> dict[str, Tensor]:
        """scale * mask * unified: each entry 0 or of the task's own sign."""
        return {name: unified[name] * mask * self.scale for name, mask in self.mask.items()}


def unify(deltas: Sequence[State], scale: str = "l1") -> tuple[dict[str, Tensor], list[Trigger]]:
    """(unified delta, a trigger for each task), of the deltas of all tasks at once.

    A coordinate takes the largest value where the tasks' sum is positive, else the smallest. `scale` is what a
    decoupled delta shares with the task's own: "l1" its L1 norm, as in the paper; "tensor_mean" the sum over
    tensors of the mean absolute value, as in the released code; "none" scales nothing.
    Raises ValueError for a delta that does not fit the first, that is zero or not finite, or that is out-voted
    in all of its coordinates.
    """
    check_scale(scale)
    shapes = {name: tuple(value.shape) for name, value in deltas[0].items()}
    for task, delta in enumerate(deltas, start=1):
        check_shapes(delta, shapes, f"Delta {task}")
    unified, masks = {}, [{} for _ in deltas]
    norms, left = [0.0] * len(deltas), [0.0] * len(deltas)
    for name in shapes:
        values = torch.stack([delta[name] for delta in deltas])  # (T, *shape)
        values = values if values.dtype == torch.float64 else values.float()
        unified[name], agree = elect(values)
        for task, (value, mask) in enumerate(zip(values, agree, strict=True)):
            masks[task][name] = mask
            norms[task] += check_size(size(value, scale), f"Delta {task + 1}", name)
            left[task] += size(unified[name] * mask, scale)
    scales = [scale_of(n, m, scale, f"Delta {task}") for task, (n, m) in enumerate(zip(norms, left, strict=True), 1)]
    return unified, [Trigger(mask, factor) for mask, factor in zip(masks, scales, strict=True)]


def size(value: Tensor, scale: str) -> float:
    """A tensor's share of the norm that the rule `scale` preserves, in double precision."""
    total = value.abs().sum(dtype=torch.float64).item()
    return total * weight_of(value.shape, scale)


def weight_of(shape: tuple, scale: str) -> float:
    """What a tensor's L1 norm counts: 1, or under "tensor_mean" one over its number of values."""
    return 1 / max(math.prod(shape), 1) if scale == "tensor_mean" else 1.0


def scale_of(norm: float, left: float, scale: str, label: str) -> float:
    """The factor that brings `left`, the norm under the task's mask, back to the task's own `norm`.

    Raises ValueError for a task without a norm, and for one of which nothing is left.
    """
    if norm == 0:
        raise ValueError(f"{label} is zero: the task changed nothing")
    if left == 0:
        raise ValueError(f"{label} is out-voted in all of its coordinates: nothing of it would be left")
    if not math.isfinite(left):
        raise ValueError(f"{label}: the unified values are not finite")
    return 1.0 if scale == "none" else norm / left


def check_size(value: float, label: str, name: str) -> float:
    """A norm, or ValueError for one that values which are not finite have spoilt."""
    if not math.isfinite(value):
        raise ValueError(f"{label}: {name} has values that are not finite")
    return value


def check_scale(scale: str) -> None:
    """ValueError for a rule that is not in SCALES."""
    if scale not in SCALES:
        raise ValueError(f"The scale is {scale!r}, expected one of {', '.join(SCALES)}")


def check_shapes(delta: State, shapes: Mapping[str, tuple], label: str) -> None:
    """ValueError for other names than those of `shapes`, other shapes, and tensors that hold no real numbers."""
    for name in sorted(delta.keys() ^ shapes.keys()):
        raise ValueError(f"{label} {'has' if name in delta else 'lacks'} {name}, unlike the first")
    for name, value in delta.items():
        if tuple(value.shape) != tuple(shapes[name]):
            raise ValueError(f"{label}: {name} has the shape {tuple(value.shape)}, the first {tuple(shapes[name])}")
        if not value.is_floating_point():
            raise ValueError(f"{label}: {name} is {value.dtype}, expected floating point numbers")
