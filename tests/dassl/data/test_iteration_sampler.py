"""Batches by iteration: what they hold, and that nothing but their number decides it."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dassl.data.samplers import IterationSampler
from dassl.data.shards import loader_like
from dassl.utils import UserError


def batches(sampler, first, count):
    """[(index, pass), ...] of each batch."""
    sampler.start(first, count)
    found = [[(int(index), index.view) for index in batch] for batch in sampler]
    assert len(sampler) == len(found) == count
    return found


def pass_order(count, seed, number):
    """The permutation of a pass: the first batch as long as the set, that far along."""
    (batch,) = batches(IterationSampler(count, count, seed), number, 1)
    assert {passed for _, passed in batch} == {number}
    return [index for index, _ in batch]


def endless(count, seed, length):
    """The line of positions, the slow way."""
    line, number = [], 0
    while len(line) < length:
        line += [(index, number) for index in pass_order(count, seed, number)]
        number += 1
    return line[:length]


@pytest.mark.parametrize("count", [1, 3, 8, 11])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_batches_cut_the_endless_line_of_permutations(count, batch):
    found = batches(IterationSampler(count, batch, seed=5), 0, 9)
    assert [item for part in found for item in part] == endless(count, 5, 9 * batch)
    assert all(len(part) == batch for part in found)  # also where the set is smaller than a batch


def test_every_pass_is_another_permutation_of_the_seed():
    orders = [pass_order(50, seed, number) for seed in (1, 2) for number in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert pass_order(50, 1, 2) == orders[2]


def test_the_global_random_state_decides_nothing_and_stays():
    before = torch.get_rng_state()
    found = batches(IterationSampler(9, 4, seed=1), 0, 6)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert batches(IterationSampler(9, 4, seed=1), 0, 6) == found


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_line_that_is_taken_up_in_the_middle_is_the_same_line(cut):
    whole = batches(IterationSampler(7, 3, seed=2), 0, 6)
    sampler = IterationSampler(7, 3, seed=2)
    assert batches(sampler, 0, cut) + batches(sampler, cut, 6 - cut) == whole
    assert batches(IterationSampler(7, 3, seed=2), cut, 6 - cut) == whole[cut:]
    assert batches(sampler, 0, 2) == whole[:2]  # backwards too


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_see_exactly_their_parts_of_each_batch(processes):
    whole = batches(IterationSampler(10, 6, seed=4), 2, 5)
    parts = [batches(IterationSampler(10, 6, 4, rank, processes), 2, 5) for rank in range(processes)]
    for number, batch in enumerate(whole):
        assert [item for part in parts for item in part[number]] == batch
        assert {len(part[number]) for part in parts} == {6 // processes}


def test_two_batches_of_half_the_size_are_one_batch():
    whole = batches(IterationSampler(10, 8, seed=4), 0, 3)
    halves = batches(IterationSampler(10, 4, seed=4), 0, 6)
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="BATCH_SIZE 64 .* 3 processes cannot share it"):
        IterationSampler(5, 64, 1, 0, 3)
    with pytest.raises(UserError, match="batches of 0"):
        IterationSampler(5, 0, 1)
    with pytest.raises(UserError, match="from 0 images"):
        IterationSampler(0, 5, 1)


class Echo(Dataset):
    """Gives the index and its view back."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([index, index.view])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_its_batches_from_the_sampler_with_any_number_of_workers(workers):
    plain = DataLoader(Echo(), batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    sampler = IterationSampler(5, 3, seed=1)
    loader = loader_like(plain, sampler, plain.persistent_workers)
    line = torch.tensor(endless(5, 1, 12)).view(4, 3, 2)
    for first, count in ((0, 1), (1, 3), (0, 4)):  # persistent workers learn of a new start
        sampler.start(first, count)
        assert torch.equal(torch.stack(list(loader)), line[first : first + count])
