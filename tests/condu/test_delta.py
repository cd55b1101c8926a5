"""Deltas and their unification: the definition by hand, and its properties, the ones that do not hold included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu.delta import Trigger, unify
from tests.fixtures.deltas import RULES, flat, l1, mean_norm, random_deltas, sessions, some_deltas

BY_HAND = [  # 4 coordinates: agreement, one against two, nobody, a tie
    {"a": torch.tensor([2.0, -1, 0]), "b": torch.tensor([3.0])},
    {"a": torch.tensor([1.0, 2, 0]), "b": torch.tensor([-1.0])},
    {"a": torch.tensor([-1.0, 1, 0]), "b": torch.tensor([-2.0])},
]
examples = settings(max_examples=40, deadline=None, derandomize=True)


def decoupled(deltas, scale="l1"):
    unified, triggers = unify(deltas, scale)
    return unified, triggers, [trigger.decouple(unified) for trigger in triggers]


def masks_of(triggers):
    return torch.stack([flat(trigger.mask) for trigger in triggers])


def scales_of(triggers):
    return [trigger.scale for trigger in triggers]


@pytest.mark.parametrize(
    ("rule", "scales"),
    [
        ("l1", [6 / 2, 4 / 6, 4 / 4]),
        ("tensor_mean", [(3 / 3 + 3) / (2 / 3), (3 / 3 + 1) / (4 / 3 + 2), 1]),  # a has 3 values, b has 1
        ("none", [1, 1, 1]),
    ],
)
def test_three_tasks_by_hand(rule, scales):
    unified, triggers = unify(BY_HAND, rule)
    assert flat(unified).tolist() == [2, 2, 0, -2]  # the tie 3 - 1 - 2 = 0 goes to the smallest
    assert masks_of(triggers).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 1]]
    assert scales_of(triggers) == pytest.approx(scales)
    assert flat(triggers[1].decouple(unified)).tolist() == pytest.approx([v * scales[1] for v in (2, 2, 0, -2)])


@examples
@given(some_deltas())
def test_largest_or_smallest_is_the_elected_sign_times_the_largest_that_agrees(deltas):  # D1
    values = torch.stack([flat(delta) for delta in deltas])
    sign = torch.where(values.sum(0) > 0, 1.0, -1.0)
    assert flat(unify(deltas)[0]).equal(sign * (sign * values).amax(0).clamp_min(0))


@examples
@given(some_deltas(), st.sampled_from(RULES))
def test_what_is_decoupled_has_the_tasks_own_sign_or_is_zero(deltas, rule):  # D2, the paper's Lemma F.1
    unified, triggers, found = decoupled(deltas, rule)
    for delta, trigger, own in zip(deltas, triggers, found, strict=True):
        kept = flat(own) != 0
        assert kept.equal(flat(trigger.mask)) and kept.equal(flat(delta).sign() * flat(unified).sign() > 0)
        assert flat(own).sign()[kept].equal(flat(delta).sign()[kept])


@examples
@given(some_deltas())
def test_the_l1_norm_survives_any_number_of_sessions(deltas):  # D3, the paper's Lemma F.2
    for unified, triggers in sessions(deltas):
        for delta, trigger in zip(deltas, triggers, strict=False):
            assert l1(trigger.decouple(unified)) == pytest.approx(l1(delta), rel=1e-5)


@examples
@given(some_deltas(fewest=2))
def test_the_released_scale_preserves_the_sum_of_tensor_means(deltas):  # D4
    for unified, triggers in sessions(deltas, "tensor_mean"):
        for delta, trigger in zip(deltas, triggers, strict=False):
            assert mean_norm(trigger.decouple(unified)) == pytest.approx(mean_norm(delta), rel=1e-5)


def test_the_released_scale_does_not_preserve_the_l1_norm():  # D4
    deltas = random_deltas(1, 3)
    found = decoupled(deltas, "tensor_mean")[2]
    assert all(abs(l1(own) / l1(delta) - 1) > 1e-3 for own, delta in zip(found, deltas, strict=True))


@examples
@given(some_deltas())
def test_the_unified_value_is_no_smaller_than_any_it_stands_for(deltas):  # D5
    unified, triggers = unify(deltas)
    for delta, trigger in zip(deltas, triggers, strict=True):
        mask = flat(trigger.mask)
        assert (flat(unified).abs()[mask] >= flat(delta).abs()[mask]).all()


@examples
@given(some_deltas(most=1), st.sampled_from(RULES))
def test_one_task_comes_back_exactly(deltas, rule):  # D6
    unified, (trigger,), (found,) = decoupled(deltas, rule)
    assert flat(unified).equal(flat(deltas[0])) and flat(found).equal(flat(deltas[0]))
    assert trigger.scale == 1 and flat(trigger.mask).equal(flat(deltas[0]) != 0)


@examples
@given(some_deltas())
def test_tasks_in_no_conflict_are_scaled_down(deltas):  # D7
    agreed = [{name: value.abs() for name, value in delta.items()} for delta in deltas]
    assert max(scales_of(unify(agreed)[1])) <= 1


def test_a_task_in_conflict_may_be_scaled_up():  # D7
    assert unify(BY_HAND)[1][0].scale == pytest.approx(3)


@examples
@given(some_deltas(fewest=2))
def test_a_mask_only_loses_coordinates(deltas):  # D8
    before = torch.ones(0, len(flat(deltas[0])), dtype=torch.bool)
    for _, triggers in sessions(deltas):
        after = masks_of(triggers)
        assert not (after[:-1] & ~before).any()
        before = after


@examples
@given(some_deltas(), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(deltas, random):  # D12
    order = random.sample(range(len(deltas)), len(deltas))
    unified, triggers = unify(deltas)
    other, others = unify([deltas[i] for i in order])
    torch.testing.assert_close(flat(other), flat(unified), rtol=1e-6, atol=0)
    assert masks_of(others).equal(masks_of(triggers)[order])
    assert scales_of(others) == pytest.approx([triggers[i].scale for i in order])


@examples
@given(some_deltas(), st.sampled_from([0.25, 8.0, -1.0]))
def test_a_common_factor_goes_through(deltas, factor):  # D13, a negative one away from ties, which go to the smallest
    unified, triggers = unify(deltas)
    other, others = unify([{name: factor * value for name, value in delta.items()} for delta in deltas])
    same = torch.ones_like(flat(unified), dtype=torch.bool)
    if factor < 0:
        same = torch.stack([flat(delta) for delta in deltas]).sum(0) != 0
    assert flat(other)[same].equal(factor * flat(unified)[same])
    assert masks_of(others)[:, same].equal(masks_of(triggers)[:, same])
    if factor > 0:
        assert scales_of(others) == scales_of(triggers)


@examples
@given(some_deltas(fewest=2))
def test_repeating_without_new_tasks_converges_monotonically(deltas):  # D14, Theorem F.3 without its assumption
    exact = [{name: value.double() for name, value in delta.items()} for delta in deltas]
    unified, triggers, found = decoupled(exact)
    masks = masks_of(triggers)
    strongest = max(range(len(triggers)), key=lambda i: triggers[i].scale)
    for repetition in range(30):
        before, scales, size = flat(unified).abs(), scales_of(triggers), 1 + 1e-12
        unified, triggers, found = decoupled(found)
        assert masks_of(triggers).equal(masks)
        assert max(scales_of(triggers)) <= size and triggers[strongest].scale == pytest.approx(1, abs=1e-12)
        if repetition:
            assert (flat(unified).abs() <= before * size).all()
            assert all(new >= old / size for new, old in zip(scales_of(triggers), scales, strict=True))


def test_the_limit_is_degenerate():  # D15: a weak task loses the coordinate that it alone has
    found = [{"a": torch.tensor([10.0, 0], dtype=torch.float64)}, {"a": torch.tensor([1.0, 1], dtype=torch.float64)}]
    values = []
    for _ in range(30):
        unified, triggers, found = decoupled(found)
        values.append(unified["a"].tolist())
    assert all(strong == 10 for strong, _ in values)
    assert values[0][1] == 1 and values[-1][1] < 1e-19
    assert values[-1][1] / values[-2][1] == pytest.approx(0.2) == triggers[1].scale  # the norm 2 over the shared 10
    assert found[1]["a"].tolist() == pytest.approx([2, 0])


def test_the_order_of_the_scales_usually_stays():  # D16: the paper assumes that it always does
    changed = 0
    for seed in range(100):
        _, triggers, found = decoupled(random_deltas(seed, 6))
        orders = [sorted(range(6), key=scales.__getitem__) for scales in map(scales_of, (triggers, unify(found)[1]))]
        changed += orders[0] != orders[1]
    assert 0 < changed < 50


def test_unifying_what_was_decoupled_is_not_the_same_again():  # D17
    for seed in range(10):
        unified, _, found = decoupled(random_deltas(seed, 3))
        assert not torch.allclose(flat(unify(found)[0]), flat(unified), rtol=1e-3)


def test_sums_of_opposite_signs_are_not_lost_to_underflow():
    tiny = [{"a": torch.tensor([1e-30, -2e-30])}, {"a": torch.tensor([3e-30, 1e-30])}]
    unified, triggers = unify(tiny)
    assert unified["a"].equal(torch.tensor([3e-30, -2e-30]))
    assert masks_of(triggers).int().tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": torch.tensor([-9.0, 9, 0]), "b": torch.tensor([-9.0])}, "Delta 1 is out-voted"),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, "Delta 2 is zero"),
        ({"a": torch.tensor([1, float("nan"), 0]), "b": torch.ones(1)}, "Delta 2: a .*not finite"),
        ({"a": torch.ones(3), "b": torch.tensor([float("inf")])}, "Delta 2: b .*not finite"),
        ({"a": torch.ones(4), "b": torch.ones(1)}, r"Delta 2: a .*\(4,\).*\(3,\)"),
        ({"a": torch.ones(3)}, "Delta 2 lacks b"),
        ({"a": torch.ones(3), "b": torch.ones(1), "c": torch.ones(1)}, "Delta 2 has c"),
        ({"a": torch.ones(3, dtype=torch.int64), "b": torch.ones(1)}, "Delta 2: a is torch.int64"),
    ],
)
def test_a_delta_that_cannot_be_unified_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        unify([BY_HAND[0], change, BY_HAND[2]])


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'l2'.*l1, tensor_mean, none"):
        unify(BY_HAND, "l2")


def test_a_trigger_reads_masked_and_scaled_values():
    trigger = Trigger({"a": torch.tensor([True, False])}, 2.5)
    assert trigger.decouple({"a": torch.tensor([2.0, 4])})["a"].tolist() == [5, 0]
