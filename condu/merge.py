"""The arithmetic of absorbing one task, on one tensor at a time and in chunks that fit the cache.

What decoupling all old tasks and unifying them with a new one gives follows, at a coordinate, from the unified
value tau, the new task's d, and two numbers of the old tasks that own the coordinate: S, the sum of their scales,
and L, the largest of them. The sign of tau * S + d is elected; the new tau is the larger, in that direction, of
tau * L and d; and an old task keeps the coordinate where the sign stayed.
The old tasks' mask bits of a coordinate, read as one number, are its code: S and L are tables over the codes, and
the norms under all masks come from one histogram of |tau| over them.
Signs are compared and flipped as the highest bit of a float read as int32: products could underflow.
Letters: n values of a tensor, m values of a chunk, k old tasks, T = k + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condu.bitpack import Codes, pack_bytes, packed_size

CHUNK = 1 << 17  # values: 512 KB a buffer, so that a core's cache holds them
DEVICE_CHUNK = 1 << 24  # elsewhere few large steps are the fastest
GROUP = 12  # tasks a code: tables of up to 4096 values, 32 KB for S and L
HISTOGRAM = ("cpu",)  # where bincount is deterministic
SIGN = -(1 << 31)  # the highest bit of an int32


def chunk_size(device: torch.device, longest: int) -> int:
    """Values to work on at once, of tensors of at most `longest`."""
    return min(CHUNK if device.type == "cpu" else DEVICE_CHUNK, 8 * max(packed_size(longest), 1))


@dataclass
class Merged:
    """One tensor after the session: `unified` (n,), packed `masks` of all T tasks, the new task's L1 norm `own`, and
    `left`, the norms of `unified` under each mask."""

    unified: Tensor
    masks: list[Tensor]
    own: float
    left: list[float]


class Group:
    """Up to GROUP old tasks, their tables over the 2^k codes, and the histogram of one tensor."""

    def __init__(self, tasks: slice, scales: Sequence[float], device: torch.device):
        self.tasks = tasks
        own = torch.tensor(scales[tasks], dtype=torch.float64)
        bits = torch.arange(1 << len(own))[:, None] >> torch.arange(len(own)) & 1  # (2^k, k)
        self.bits = bits.double()
        self.sums = (self.bits * own).sum(1).float().to(device)
        self.largest = (self.bits * own).amax(1).float().to(device)
        self.clear()

    def clear(self) -> None:
        self.sizes = torch.zeros(self.bits.shape[1], dtype=torch.float64)

    def count(self, codes: Tensor, weights: Tensor) -> None:
        """Add the fp64 `weights` (m,) of the coordinates with these codes (m,) to the tasks' sizes."""
        if codes.device.type in HISTOGRAM:
            self.sizes += torch.bincount(codes, weights, len(self.bits)) @ self.bits
        else:
            tasks = [(weights * (codes >> i & 1)).sum() for i in range(self.bits.shape[1])]
            self.sizes += torch.stack(tasks).cpu()


class Merge:
    """One session: the tables of the old tasks' scales, and the buffers of a chunk."""

    def __init__(self, scales: Sequence[float], largest_tensor: int, device: torch.device):
        self.chunk = chunk_size(device, largest_tensor)
        count = -(-len(scales) // GROUP)
        bounds = [i * len(scales) // count for i in range(count + 1)] if count else []
        self.groups = [Group(slice(a, b), scales, device) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.codes = Codes(self.chunk, device)
        self.kept_codes = torch.empty(count, self.chunk, dtype=torch.int16, device=device)
        self.floats = torch.empty(6, self.chunk, device=device)
        self.doubles = torch.empty(self.chunk, dtype=torch.float64, device=device)
        self.bytes = torch.empty(self.chunk, dtype=torch.int8, device=device)

    def tensor(self, tau: Tensor, masks: Sequence[Tensor], new: Tensor) -> Merged:
        """tau, new: fp32 (n,); masks: the old tasks' packed bits of this tensor."""
        n = len(new)
        out = torch.empty_like(new)
        keep, gain = (torch.empty(packed_size(n), dtype=torch.uint8, device=new.device) for _ in range(2))
        sizes = torch.zeros(2, dtype=torch.float64, device=new.device)  # of the new task: its own, and what is left
        for group in self.groups:
            group.clear()
        for start in range(0, n, self.chunk):
            piece = slice(start, start + self.chunk)
            packed = slice(start // 8, (start + self.chunk) // 8)
            old, d = _even(tau[piece]), _even(new[piece])
            self._look_up([mask[packed] for mask in masks], len(d))
            out[piece] = self._elect(old, d, keep[packed], gain[packed], sizes)[: len(out[piece])]
        left = [size for group in self.groups for size in group.sizes.tolist()]
        own, mine = sizes.tolist()
        return Merged(out, [*(mask & keep for mask in masks), gain], own, [*left, mine])

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
        self._pack(mine_bits, gain)
        mine_bits.bitwise_and_(size_bits)
        sizes[1] += self._sum(mine)

        flip_bits.bitwise_xor_(tau.view(torch.int32)).bitwise_right_shift_(31).bitwise_not_()  # all bits where it stays
        self._pack(flip_bits, keep)
        flip_bits.bitwise_and_(size_bits)
        weights = self.doubles[:m].copy_(flip)
        for group, codes in zip(self.groups, self.kept_codes[:, :m], strict=True):
            group.count(codes, weights)
        return result

    def _pack(self, bits: Tensor, out: Tensor) -> None:
        pack_bytes(self.bytes[: len(bits)].copy_(bits), out)

    def _sum(self, values: Tensor) -> Tensor:
        return self.doubles[: len(values)].copy_(values).sum()


def _even(values: Tensor) -> Tensor:
    """Filled up with zeros to a multiple of 8."""
    rest = -len(values) % 8
    return torch.nn.functional.pad(values, (0, rest)) if rest else values
