"""Resident experts: filled when asked for, once as long as they stay, in memory that is used again."""

import pytest
import torch

from condu.evaluation import ExpertCache
from dassl.clip.tiny import random_tiny
from tests.fixtures.condu_world import SMALL, member_of, noise_of


@pytest.fixture
def clip():
    return random_tiny(**SMALL).freeze()


def state(clip):
    return {name: p.detach().clone() for name, p in clip.module.named_parameters()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def members(clip, count):
    return [member_of(clip, noise_of(clip, seed), f"expert {seed}") for seed in range(count)]


def test_each_key_has_its_weights_and_the_pretrained_ones_stay(clip):
    before, slots = state(clip), ExpertCache(clip)
    deltas = [noise_of(clip, seed) for seed in range(3)]
    for seed in (0, 1, 0, 2, 1):
        member = member_of(clip, deltas[seed], f"expert {seed}")
        found = state(slots.clip(member.key, member.fill))
        assert equal(found, {name: p + deltas[seed].get(name, 0) for name, p in before.items()})
    assert equal(state(clip), before)


def test_the_same_expert_is_not_filled_twice_in_a_row(clip):
    slots, (first, second) = ExpertCache(clip), members(clip, 2)
    for member in (first, first, second, second, first):
        slots.clip(member.key, member.fill)
    assert slots.filled == 3


def test_the_one_not_used_for_longest_gives_way(clip):
    slots, (a, b, c) = ExpertCache(clip, capacity=2), members(clip, 3)
    for member in (a, b, a, c):
        slots.clip(member.key, member.fill)
    assert slots.filled == 3
    slots.clip(a.key, a.fill)
    assert slots.filled == 3


def test_weights_are_written_into_the_same_memory(clip):
    slots, (a, b) = ExpertCache(clip), members(clip, 2)
    first = slots.clip(a.key, a.fill)
    places = [p.data_ptr() for p in first.module.parameters()]
    second = slots.clip(b.key, b.fill)
    assert second is first and first is not clip
    assert [p.data_ptr() for p in second.module.parameters()] == places
    assert not any(p.requires_grad for p in second.module.parameters()) and not second.module.training


def test_a_fill_that_fails_leaves_no_half_expert_under_its_key(clip):
    slots, (good, other) = ExpertCache(clip), members(clip, 2)
    slots.clip(good.key, good.fill)

    def broken(parameters):
        parameters["visual.proj"].zero_()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        slots.clip(other.key, broken)
    assert slots.filled == 1
    reference = ExpertCache(clip)
    for member in (good, other):
        assert equal(state(slots.clip(member.key, member.fill)), state(reference.clip(member.key, member.fill)))
