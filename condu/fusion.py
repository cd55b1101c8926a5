"""ConDU's fusion of one task after another, in the memory of one model (arXiv 2503.10705).

`Fusion` holds one unified delta and a packed mask, a scale and a norm a task. A task's norm is a constant, so that
its new scale is that norm over the norm of what its mask now shows, and no old delta is ever built again.
Letters: T tasks, P values of all tensors together, n values of one tensor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from condu.bitpack import Codes, packed_size, unpack
from condu.delta import State, Trigger, check_scale, check_shapes, check_size, scale_of, weight_of
from condu.merge import Merge, Merged, chunk_size

THREADED = 1 << 20  # values from which threads pay


class Fusion:
    """The tasks so far.

    `tasks` names them in order; `unified` {name: fp32}; `masks` each task's {name: uint8 (ceil(n / 8),)}; `scales`
    and `norms` (of the task's own delta) a number a task; `shapes` {name: shape}; `scale` the rule of `unify`. The
    state lies on the device of the first delta. Its tensors are replaced by `absorb`, never written to.
    """

    def __init__(self, scale: str = "l1"):
        check_scale(scale)
        self.scale = scale
        self.tasks: list[str] = []
        self.unified: dict[str, Tensor] = {}
        self.masks: list[dict[str, Tensor]] = []
        self.scales: list[float] = []
        self.norms: list[float] = []
        self.shapes: dict[str, tuple] = {}

    @torch.no_grad()
    def absorb(self, name: str, delta: State) -> None:
        """One task more, with the result of `unify` of all decoupled deltas and this one.

        Raises ValueError for a task that is absorbed already, for a delta that does not fit the others', is zero or
        not finite, and where this task or an old one would be out-voted everywhere. The state is then as before.
        """
        if name in self.tasks:
            raise ValueError(f"{name} is absorbed already; the tasks are {', '.join(self.tasks)}")
        label = f"The delta of {name}"
        if not delta:
            raise ValueError(f"{label} has no tensors")
        shapes = self.shapes or {key: tuple(value.shape) for key, value in delta.items()}
        check_shapes(delta, shapes, label)
        tasks = [*self.tasks, name]
        device = next(iter((self.unified or delta).values())).device
        shares = _in_threads(lambda keys: self._merge(keys, delta, device), shapes, device)
        merged = {key: value for share in shares for key, value in share.items()}
        unified, masks, own, left = {}, [{} for _ in tasks], 0.0, [0.0] * len(tasks)
        for key, shape in shapes.items():
            weight = weight_of(shape, self.scale)
            unified[key] = merged[key].unified.view(shape)
            own += check_size(weight * merged[key].own, label, key)
            left = [total + weight * more for total, more in zip(left, merged[key].left, strict=True)]
            for mask, bits in zip(masks, merged[key].masks, strict=True):
                mask[key] = bits
        norms = [*self.norms, own]
        labels = [*(f"Once {name} is absorbed, {task}" for task in self.tasks), label]
        scales = [scale_of(*sizes, self.scale, who) for *sizes, who in zip(norms, left, labels, strict=True)]
        self.tasks, self.scales, self.norms, self.shapes = tasks, scales, norms, shapes
        self.unified, self.masks = unified, masks

    def _merge(self, keys: Sequence[str], delta: State, device: torch.device) -> dict[str, Merged]:
        """These tensors after the session."""
        merge = Merge(self.scales, max((delta[key].numel() for key in keys), default=0), device)
        merged = {}
        for key in keys:
            new = delta[key].detach().to(device, torch.float32).reshape(-1)
            old = self.unified[key].view(-1) if self.tasks else torch.zeros_like(new)
            merged[key] = merge.tensor(old, [mask[key] for mask in self.masks], new)
        return merged

    def trigger(self, name: str) -> Trigger:
        """The task's mask, unpacked, and its scale."""
        index = self._index(name)
        bits = self.masks[index]
        mask = {key: unpack(bits[key], math.prod(shape)).view(shape) for key, shape in self.shapes.items()}
        return Trigger(mask, self.scales[index])

    def decouple(self, name: str) -> dict[str, Tensor]:
        """The task's delta again: {name: fp32}, scale * mask * unified."""
        out = {key: torch.empty_like(value) for key, value in self.unified.items()}
        self._write(name, lambda key, piece, part: out[key].view(-1)[piece].copy_(part))
        return out

    @torch.no_grad()
    def add_to(self, name: str, pretrained: State, out: Mapping[str, Tensor]) -> None:
        """out = pretrained + the task's delta for the fusion's names, in place and without large temporaries.

        Any devices and floating dtypes, the sum in single precision; `out` may be `pretrained`. Raises ValueError,
        before anything is written, for an unknown task and for tensors that are missing, or of other shapes.
        """
        self._index(name)
        for label, state in (("The pretrained weights", pretrained), ("The weights to write", out)):
            check_shapes({key: state[key] for key in self.shapes if key in state}, self.shapes, label)
        base, target = {}, {}
        for key in self.shapes:
            base[key] = pretrained[key].detach().reshape(-1)
            target[key] = out[key].detach().view(-1) if out[key].is_contiguous() else torch.empty_like(base[key])

        def write(key: str, piece: slice, part: Tensor) -> None:
            start, end = base[key][piece], target[key][piece]
            part = part.to(start.device)
            if start.dtype == end.dtype == torch.float32 and start.device == end.device:
                torch.add(start, part, out=end)
            else:
                end.copy_(start + part)

        self._write(name, write)
        for key in self.shapes:
            if not out[key].is_contiguous():
                out[key].copy_(target[key].view(self.shapes[key]))

    def _write(self, name: str, write: Callable[[str, slice, Tensor], object]) -> None:
        """Call `write` with all chunks of the task's delta: (tensor's name, slice of its values, fp32 values)."""
        index = self._index(name)
        scale, masks = self.scales[index], self.masks[index]
        device = next(iter(self.unified.values())).device

        def work(keys: Sequence[str]) -> None:
            chunk = chunk_size(device, max((self.unified[key].numel() for key in keys), default=0))
            codes = Codes(chunk, device)
            buffer = torch.empty(chunk, dtype=torch.int32, device=device)
            for key in keys:
                tau = self.unified[key].view(-1)
                for start in range(0, len(tau), chunk):
                    piece = slice(start, start + chunk)
                    values = tau[piece].view(torch.int32)
                    bits = codes.of([masks[key][start // 8 : (start + chunk) // 8]])[: len(values)].neg_()
                    part = torch.bitwise_and(values, bits, out=buffer[: len(values)]).view(torch.float32)
                    write(key, piece, part.mul_(scale))

        _in_threads(work, self.shapes, device)

    def _index(self, name: str) -> int:
        if name not in self.tasks:
            raise ValueError(f"{name} is no task of the fusion, which has {', '.join(self.tasks) or 'none'}")
        return self.tasks.index(name)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, facts that JSON can hold): all there is. A task's masks are one tensor, in the names' order."""
        tensors = {f"unified.{key}": value for key, value in self.unified.items()}
        tensors |= {f"mask.{i}": torch.cat([mask[key] for key in self.shapes]) for i, mask in enumerate(self.masks)}
        facts = {key: list(getattr(self, key)) for key in ("tasks", "scales", "norms")}
        return tensors, facts | {"scale": self.scale, "shapes": [[key, *shape] for key, shape in self.shapes.items()]}

    @classmethod
    def from_state(cls, tensors: State, facts: Mapping) -> "Fusion":
        """The fusion that `state` was taken of; unified values may have been rounded. ValueError for what is none."""
        if missing := {"tasks", "scales", "norms", "scale", "shapes"} - facts.keys():
            raise ValueError(f"The fusion's facts lack {', '.join(sorted(missing))}")
        fusion = cls(facts["scale"])
        fusion.shapes = {key: tuple(shape) for key, *shape in facts["shapes"]}
        fusion.tasks = list(facts["tasks"])
        fusion.scales, fusion.norms = ([float(v) for v in facts[key]] for key in ("scales", "norms"))
        counts = [len(values) for values in (fusion.tasks, fusion.scales, fusion.norms)]
        if len(set(counts)) > 1 or len(set(fusion.tasks)) < counts[0]:
            raise ValueError(f"The fusion has the tasks {fusion.tasks}, {counts[1]} scales and {counts[2]} norms")
        if wrong := [value for value in (*fusion.scales, *fusion.norms) if not 0 < value < math.inf]:
            raise ValueError(f"The fusion has a scale or norm of {wrong[0]}, expected finite numbers above 0")
        sizes = [packed_size(math.prod(shape)) for shape in fusion.shapes.values()]
        expected = {f"unified.{key}": shape for key, shape in fusion.shapes.items()} if fusion.tasks else {}
        expected |= {f"mask.{i}": (sum(sizes),) for i in range(len(fusion.tasks))}
        found = {key: tuple(value.shape) for key, value in tensors.items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                said = [str(shapes.get(key, "none")) for shapes in (found, expected)]
                raise ValueError(f"The fusion's tensor {key}: the shape is {said[0]}, expected {said[1]}")
        fusion.unified = {key: tensors[f"unified.{key}"].float() for key in fusion.shapes if fusion.tasks}
        for i, task in enumerate(fusion.tasks):
            if tensors[f"mask.{i}"].dtype != torch.uint8:
                raise ValueError(f"The mask of {task} is {tensors[f'mask.{i}'].dtype}, expected packed bits, uint8")
            fusion.masks.append(dict(zip(fusion.shapes, tensors[f"mask.{i}"].split(sizes), strict=True)))
        return fusion


def _in_threads(work: Callable[[list[str]], Any], shapes: Mapping[str, tuple], device: torch.device) -> list:
    """What `work` makes of the names; on a CPU each thread takes whole tensors, for half of the work is serial."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or sum(map(math.prod, shapes.values())) < THREADED:
        return [work(list(shapes))]

    shares, loads = [[] for _ in range(threads)], [0] * threads  # of about as many values each
    for key in sorted(shapes, key=lambda key: -math.prod(shapes[key])):
        least = loads.index(min(loads))
        shares[least].append(key)
        loads[least] += math.prod(shapes[key])

    def alone(keys: list[str]) -> Any:
        torch.set_num_threads(1)  # inside this thread
        return work(keys)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, shares))
    finally:
        torch.set_num_threads(threads)  # of threads to come
