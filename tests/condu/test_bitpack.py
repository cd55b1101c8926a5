"""Packed masks: the layout, the way there and back, and the codes of several masks."""

import pytest
import torch

from condu.bitpack import Codes, pack_bytes, packed_size
from tests.fixtures.deltas import unpacked


def pack(mask):
    """A bool tensor (n,), filled up to whole bytes."""
    ones = torch.zeros(8 * packed_size(len(mask)), dtype=torch.int8)
    ones[: len(mask)] = mask
    return pack_bytes(ones, torch.empty(packed_size(len(mask)), dtype=torch.uint8))


def test_the_lowest_bit_is_the_first_coordinate():
    mask = torch.zeros(11, dtype=torch.bool)
    mask[[0, 3, 8]] = True
    assert pack(mask).tolist() == [0b1001, 0b1] and pack(mask).dtype == torch.uint8


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1003])
def test_masks_come_back(n):
    mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    assert len(pack(mask)) == -(-n // 8)
    assert unpacked(pack(mask), (n,)).equal(mask)


@pytest.mark.parametrize("k", [1, 8, 9, 16])
def test_a_code_has_the_bits_of_all_masks(k):
    masks = torch.rand(k, 40, generator=torch.Generator().manual_seed(k)) < 0.5
    reader = Codes(80)
    reader.of([torch.full((10,), 255, dtype=torch.uint8)] * 16)  # leaves its buffers full
    codes = reader.of([pack(mask) for mask in masks])
    assert codes.shape == (40,) and (codes >> k).count_nonzero() == 0
    assert all((codes >> i & 1).bool().equal(mask) for i, mask in enumerate(masks))
