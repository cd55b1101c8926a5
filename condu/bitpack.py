"""Masks at one bit a coordinate, and codes: the bits that up to 16 masks have at a coordinate, as one number.

Bit i % 8 of byte i // 8, counted from the lowest, belongs to coordinate i; the last byte is filled up with zeros.
A table turns a packed byte into a word of eight bytes 0 or 1, and masks are joined by `or` of shifted words: no
loop over coordinates or bits is left. Buffers are the caller's, since new memory costs more than the arithmetic.
Letters: n coordinates, k masks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ONES = 0x0101010101010101
GATHER = 0x0102040810204080  # times a word of eight bytes 0 or 1: byte i becomes bit i of the highest byte


def packed_size(n: int) -> int:
    """Bytes that the packed mask of n coordinates takes."""
    return -(-n // 8)


def pack_bytes(ones: Tensor, out: Tensor) -> Tensor:
    """Pack the lowest bits of int8 `ones` (n,), n a multiple of 8, into uint8 `out` (n / 8,); overwrites `ones`."""
    words = ones.view(torch.int64)
    words.bitwise_and_(ONES).mul_(GATHER).bitwise_right_shift_(56)
    return out.copy_(words)


def byte_words() -> Tensor:
    """The eight coordinates of each byte as bytes 0 or 1 of a word: int64 (256,)."""
    return (torch.arange(256)[:, None] >> torch.arange(8) & 1).to(torch.uint8).view(torch.int64).view(-1)


class Codes:
    """Reads the codes of chunks of up to n coordinates."""

    def __init__(self, n: int):
        n = packed_size(n)
        # (8, 256): row i has byte j of word b at bit i if b has bit j
        self.table = byte_words() << torch.arange(8)[:, None]
        self.index = torch.empty(n, dtype=torch.int32)
        self.words = torch.empty(3, n, dtype=torch.int64)
        self.codes = torch.empty(8 * n, dtype=torch.int32)

    def of(self, masks: Sequence[Tensor]) -> Tensor:
        """int32 (8 * bytes,): bit i of a coordinate's code is its bit in mask i; up to 16 packed masks of one length.

        Valid until the next call.
        """
        codes = self.codes[: 8 * len(masks[0])]
        low = self._bytes(masks[:8], 0)
        if len(masks) <= 8:
            return codes.copy_(low)
        return codes.copy_(self._bytes(masks[8:], 1)).bitwise_left_shift_(8).bitwise_or_(low)

    def _bytes(self, masks: Sequence[Tensor], row: int) -> Tensor:
        n = len(masks[0])
        index, out, word = self.index[:n], self.words[row, :n], self.words[2, :n]
        for i, packed in enumerate(masks):
            torch.index_select(self.table[i], 0, index.copy_(packed), out=word if i else out)
            if i:
                out.bitwise_or_(word)
        return out.view(torch.uint8)
