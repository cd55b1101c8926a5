"""ConDU's fusion of one task after another, in the memory of one model (arXiv 2503.10705).

By the definition (`condu.delta.unify`) a new task costs the deltas of all T old ones: each is decoupled, scale_i *
mask_i * tau, and all are unified with the new delta d. `Fusion.absorb` gets the same from the unified delta tau, the
packed masks and two numbers a task, for four reasons:

1. At a coordinate all old deltas are multiples of one value, tau, by the scales of the tasks whose mask has it. So
   their sum is tau * S and the largest of them tau * L, where S is the sum and L the maximum of those scales. The sign
   of tau * S + d is elected; the new tau is the larger, in that direction, of tau * L and d.
2. An old task is of the sign of tau wherever its mask is set: it keeps the coordinate where that sign is elected, and
   never gains one. So one mask, "the sign stayed", cuts all old ones, as packed as they are.
3. S and L depend on nothing but which masks are set. Their bits at a coordinate, read as one number, are its code
   (`condu.bitpack`), and S and L are two tables over the codes.
4. A task's norm never changes, so its new scale is that norm over the norm of what its mask now shows. The norms under
   all masks come from one histogram of |tau| over the codes.

Tensors are taken one after another and in chunks that fit the cache: look S and L up, elect, pack both masks, count.
Scales come last, as they need all tensors; only then is anything of the state replaced, so a refused task leaves it as
it was. At most there are the old tau and masks, the new ones, d, and some megabytes of buffers, whatever T is.

Signs are compared and flipped as the highest bit of a float read as int32: products could underflow.
Letters: T tasks, k old ones of a group, n values of a tensor, m values of a chunk.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from condu.bitpack import Codes, byte_words, pack_bytes, packed_size
from condu.delta import State, check_scale, check_shapes, check_size, scale_of, weight_of

CHUNK = 1 << 17  # values: 512 KB a buffer, so that a core's cache holds them
GROUP = 12  # tasks a code: tables of up to 4096 values, 32 KB for S and L
SIGN = -(1 << 31)  # the highest bit of an int32


class Fusion:
    """The tasks so far.

    `tasks` names them in order; `unified` {name: fp32}; `masks` each task's {name: uint8 (ceil(n / 8),)}; `scales`
    and `norms` (of the task's own delta) a number a task; `shapes` {name: shape}; `scale` the rule of `unify`. The
    state lies on the CPU. Its tensors are replaced by `absorb`, never written to.
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
        shapes = self.shapes or {key: tuple(value.shape) for key, value in delta.items()}
        check_shapes(delta, shapes, label)
        tasks = [*self.tasks, name]
        shares = _in_threads(lambda keys: self._merge(keys, delta), shapes)
        merged = {key: value for share in shares for key, value in share.items()}
        unified, masks, norm, left = {}, [{} for _ in tasks], 0.0, [0.0] * len(tasks)
        for key, shape in shapes.items():
            values, packed, size, sizes = merged[key]
            weight = weight_of(shape, self.scale)
            unified[key] = values.view(shape)
            norm += check_size(weight * size, label, key)
            left = [total + weight * more for total, more in zip(left, sizes, strict=True)]
            for mask, bits in zip(masks, packed, strict=True):
                mask[key] = bits
        norms = [*self.norms, norm]
        labels = [*(f"Once {name} is absorbed, {task}" for task in self.tasks), label]
        scales = [scale_of(*sizes, self.scale, who) for *sizes, who in zip(norms, left, labels, strict=True)]
        self.tasks, self.scales, self.norms, self.shapes = tasks, scales, norms, shapes
        self.unified, self.masks = unified, masks

    def _merge(self, keys: Sequence[str], delta: State) -> dict[str, tuple]:
        """These tensors after the session, as `_Merge.tensor` gives them."""
        merge, merged = _Merge(self.scales), {}
        for key in keys:
            new = delta[key].detach().to("cpu", torch.float32).reshape(-1)
            old = self.unified[key].view(-1) if self.tasks else torch.zeros_like(new)
            merged[key] = merge.tensor(old, [mask[key] for mask in self.masks], new)
        return merged

    def decouple(self, name: str) -> dict[str, Tensor]:
        """The task's delta again: {name: fp32}, scale * mask * unified."""
        out = {key: torch.zeros_like(value) for key, value in self.unified.items()}
        self.add_to(name, out, out)
        return out

    @torch.no_grad()
    def add_to(self, name: str, pretrained: State, out: Mapping[str, Tensor]) -> None:
        """out = pretrained + the task's delta for the fusion's names, in place and without large temporaries.

        Any devices and floating dtypes, the sum in single precision; `out` may be `pretrained`. Raises ValueError,
        before anything is written, for an unknown task and for tensors that are missing, or of other shapes.
        """
        if name not in self.tasks:
            raise ValueError(f"{name} is no task of the fusion, which has {', '.join(self.tasks) or 'none'}")
        index = self.tasks.index(name)
        scale, masks = self.scales[index], self.masks[index]
        for label, state in (("The pretrained weights", pretrained), ("The weights to write", out)):
            check_shapes({key: state[key] for key in self.shapes if key in state}, self.shapes, label)
        words = byte_words()

        def write(keys: Sequence[str]) -> None:
            for key in keys:
                tau, base = self.unified[key].view(-1), pretrained[key].detach().reshape(-1)
                target = out[key].detach().reshape(-1)  # a copy where it is not contiguous
                for start in range(0, len(tau), CHUNK):
                    piece, packed = slice(start, start + CHUNK), slice(start // 8, (start + CHUNK) // 8)
                    ones = words.index_select(0, masks[key][packed].int()).view(torch.int8)
                    part = (tau[piece] * ones[: len(tau[piece])]).mul_(scale)
                    target[piece] = base[piece] + part.to(base.device)
                if not out[key].is_contiguous():
                    out[key].detach().copy_(target.view(self.shapes[key]))

        _in_threads(write, self.shapes)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, facts that JSON can hold): all there is. A task's masks are one tensor, in the names' order."""
        tensors = {f"unified.{key}": value for key, value in self.unified.items()}
        tensors |= {f"mask.{i}": torch.cat([mask[key] for key in self.shapes]) for i, mask in enumerate(self.masks)}
        facts = {key: list(getattr(self, key)) for key in ("tasks", "scales", "norms")}
        return tensors, facts | {"scale": self.scale, "shapes": [[key, *shape] for key, shape in self.shapes.items()]}

    @classmethod
    def from_state(cls, tensors: State, facts: Mapping) -> "Fusion":
        """The fusion that `state` was taken of; unified values may have been rounded. KeyError and ValueError
        for what is none."""
        fusion = cls(facts["scale"])
        fusion.shapes = {key: tuple(shape) for key, *shape in facts["shapes"]}
        fusion.tasks = list(facts["tasks"])
        fusion.scales, fusion.norms = ([float(v) for v in facts[key]] for key in ("scales", "norms"))
        counts = {len(values) for values in (fusion.tasks, set(fusion.tasks), fusion.scales, fusion.norms)}
        if len(counts) > 1 or not all(0 < value < math.inf for value in fusion.scales + fusion.norms):
            raise ValueError(
                f"The fusion has the tasks {fusion.tasks}, scales {fusion.scales} and norms {fusion.norms}, expected a "
                "finite number above 0 for each"
            )
        sizes = [packed_size(math.prod(shape)) for shape in fusion.shapes.values()]
        expected = {f"unified.{key}": shape for key, shape in fusion.shapes.items()}
        expected |= {f"mask.{i}": (sum(sizes),) for i in range(len(fusion.tasks))}
        present = {key: tuple(value.shape) for key, value in tensors.items()}
        for key in sorted(expected.keys() | present.keys()):
            if expected.get(key) != present.get(key):
                said = [str(shapes.get(key, "none")) for shapes in (present, expected)]
                raise ValueError(f"The fusion's tensor {key}: the shape is {said[0]}, expected {said[1]}")
        fusion.unified = {key: tensors[f"unified.{key}"].float() for key in fusion.shapes}
        for i, task in enumerate(fusion.tasks):
            if tensors[f"mask.{i}"].dtype != torch.uint8:
                raise ValueError(f"The mask of {task} is {tensors[f'mask.{i}'].dtype}, expected packed bits, uint8")
            fusion.masks.append(dict(zip(fusion.shapes, tensors[f"mask.{i}"].split(sizes), strict=True)))
        return fusion


class _Group:
    """Up to GROUP old tasks, their tables over the 2^k codes, and the histogram of one tensor."""

    def __init__(self, tasks: slice, scales: Sequence[float]):
        self.tasks = tasks
        of_tasks = torch.tensor(scales[tasks], dtype=torch.float64)
        bits = torch.arange(1 << len(of_tasks))[:, None] >> torch.arange(len(of_tasks)) & 1  # (2^k, k)
        self.bits = bits.double()
        self.sums = (self.bits * of_tasks).sum(1).float()
        self.largest = (self.bits * of_tasks).amax(1).float()

    def clear(self) -> None:
        self.sizes = torch.zeros(self.bits.shape[1], dtype=torch.float64)

    def count(self, codes: Tensor, weights: Tensor) -> None:
        """Add the fp64 `weights` (m,) of the coordinates with these codes (m,) to the tasks' sizes."""
        self.sizes += torch.bincount(codes, weights, len(self.bits)) @ self.bits


class _Merge:
    """One session on some of the tensors: the tables of the old tasks' scales, and the buffers of a chunk."""

    def __init__(self, scales: Sequence[float]):
        count = -(-len(scales) // GROUP)
        bounds = [i * len(scales) // count for i in range(count + 1)] if count else []
        self.groups = [_Group(slice(a, b), scales) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.codes = Codes(CHUNK)
        self.kept_codes = torch.empty(count, CHUNK, dtype=torch.int16)
        self.floats = torch.empty(6, CHUNK)
        self.doubles = torch.empty(CHUNK, dtype=torch.float64)
        self.bytes = torch.empty(CHUNK, dtype=torch.int8)

    def tensor(self, tau: Tensor, masks: Sequence[Tensor], new: Tensor) -> tuple[Tensor, list[Tensor], float, list]:
        """One tensor after the session -> (unified (n,), packed masks of all T tasks, the new task's L1 norm, the norms
        of `unified` under each mask). tau, new: fp32 (n,); masks: the old tasks' packed bits of this tensor."""
        n = len(new)
        out = torch.empty_like(new)
        keep, gain = (torch.empty(packed_size(n), dtype=torch.uint8) for _ in range(2))
        sizes = torch.zeros(2, dtype=torch.float64)  # of the new task: its own, and what is left
        for group in self.groups:
            group.clear()
        for start in range(0, n, CHUNK):
            piece = slice(start, start + CHUNK)
            packed = slice(start // 8, (start + CHUNK) // 8)
            old, d = _even(tau[piece]), _even(new[piece])
            self._look_up([mask[packed] for mask in masks], len(d))
            out[piece] = self._elect(old, d, keep[packed], gain[packed], sizes)[: len(out[piece])]
        left = [size for group in self.groups for size in group.sizes.tolist()]
        norm, gained = sizes.tolist()
        return out, [*(mask & keep for mask in masks), gain], norm, [*left, gained]

    def _look_up(self, masks: Sequence[Tensor], m: int) -> None:
        """S and L of the chunk into the first two buffers; the codes are kept for the histogram."""
        sums, largest, more_sums, more_largest = self.floats[:4, :m]
        if not self.groups:
            self.floats[:2, :m] = 0
        for i, group in enumerate(self.groups):
            codes = self.codes.of(masks[group.tasks])
            self.kept_codes[i, :m] = codes
            torch.index_select(group.sums, 0, codes, out=more_sums if i else sums)
            torch.index_select(group.largest, 0, codes, out=more_largest if i else largest)
            if i:
                sums.add_(more_sums)
                torch.maximum(largest, more_largest, out=largest)

    def _elect(self, tau: Tensor, d: Tensor, keep: Tensor, gain: Tensor, sizes: Tensor) -> Tensor:
        """The new tau (m,) of a chunk; writes the packed bits that old tasks keep and the new one gains, adds norms."""
        m = len(d)
        sums, old, flip, mine, size, result = self.floats[:, :m]
        flip_bits, mine_bits, size_bits = (x.view(torch.int32) for x in (flip, mine, size))
        torch.addcmul(d, tau, sums, out=flip)
        # the sign bit where the sum is negative or 0, for ints one below +0 is negative; else 0
        flip_bits.sub_(1).bitwise_and_(SIGN)
        torch.mul(tau, old, out=old).view(torch.int32).bitwise_xor_(flip_bits)
        torch.bitwise_xor(d.view(torch.int32), flip_bits, out=mine_bits)
        torch.maximum(old, mine, out=size)
        torch.bitwise_xor(size_bits, flip_bits, out=result.view(torch.int32))
        sizes[0] += self._sum(torch.abs(d, out=sums))

        mine_bits.clamp_min_(0).neg_().bitwise_right_shift_(31)  # all bits where d is of the elected sign, else none
        pack_bytes(self.bytes[:m].copy_(mine_bits), gain)
        mine_bits.bitwise_and_(size_bits)
        sizes[1] += self._sum(mine)

        flip_bits.bitwise_xor_(tau.view(torch.int32)).bitwise_right_shift_(31).bitwise_not_()  # all bits where it stays
        pack_bytes(self.bytes[:m].copy_(flip_bits), keep)
        flip_bits.bitwise_and_(size_bits)
        weights = self.doubles[:m].copy_(flip)
        for group, codes in zip(self.groups, self.kept_codes[:, :m], strict=True):
            group.count(codes, weights)
        return result

    def _sum(self, values: Tensor) -> Tensor:
        return self.doubles[: len(values)].copy_(values).sum()


def _even(values: Tensor) -> Tensor:
    """Filled up with zeros to a multiple of 8."""
    rest = -len(values) % 8
    return torch.nn.functional.pad(values, (0, rest)) if rest else values


def _in_threads(work: Callable[[list[str]], Any], shapes: Mapping[str, tuple]) -> list:
    """What `work` makes of the names; each thread takes whole tensors, for half of the work is serial."""
    threads = torch.get_num_threads()
    if threads == 1:
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
