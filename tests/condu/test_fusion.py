"""Fusion one task at a time against decoupling and unifying all at once, its guards, and its experts."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import condu.fusion
from condu.delta import unify
from condu.fusion import Fusion
from tests.fixtures.deltas import RULES, apply_delta, flat, l1, random_deltas, some_deltas, trigger_of

LARGE = {"weight": (37, 53), "bias": (19,), "scale": (), "none": (0, 3)}
examples = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks a tensor, the last one ragged."""
    monkeypatch.setattr(condu.fusion, "CHUNK", 64)


def fused(deltas, scale="l1"):
    fusion = Fusion(scale)
    for i, delta in enumerate(deltas):
        fusion.absorb(f"task{i}", delta)
    return fusion


def masks_of(fusion):
    return torch.stack([flat(trigger_of(fusion, task).mask) for task in fusion.tasks])


def agree(fusion, unified, triggers, terms):
    """The same weights and scales to 1e-6 and the same masks, but for ties: sums below 1e-6 of the largest term."""
    terms = torch.stack([flat(term) for term in terms]).double()
    clear = (terms.sum(0).abs() > 1e-6 * terms.abs().amax(0)) | (terms == 0).all(0)
    size = flat(unified).abs().max().item()
    assert (flat(fusion.unified) - flat(unified)).abs()[clear].max() <= 1e-6 * size
    masks = torch.stack([flat(trigger.mask) for trigger in triggers])
    assert masks_of(fusion)[:, clear].equal(masks[:, clear])
    if masks_of(fusion).equal(masks):
        assert fusion.scales == pytest.approx([trigger.scale for trigger in triggers], rel=1e-6)


def snapshot(fusion):
    return copy.deepcopy(vars(fusion))


def same(fusion, before):
    tensors = [fusion.unified, *fusion.masks], [before["unified"], *before["masks"]]
    assert all(now.keys() == old.keys() for now, old in zip(*tensors, strict=True))
    assert all(now[key].equal(old[key]) for now, old in zip(*tensors, strict=True) for key in now)
    names = ("tasks", "scales", "norms", "shapes", "scale")
    assert all(getattr(fusion, name) == before[name] for name in names)


@pytest.mark.parametrize("rule", RULES)
def test_a_long_stream_equals_decoupling_and_unifying_all(rule, small_chunks):  # D10; 27 tasks: three groups of codes
    deltas = random_deltas(0, 27, shapes=LARGE)
    fusion, decoupled = Fusion(rule), []
    for i, delta in enumerate(deltas):
        fusion.absorb(f"task{i}", delta)
        unified, triggers = unify([*decoupled, delta], rule)
        agree(fusion, unified, triggers, [*decoupled, delta])
        decoupled = [fusion.decouple(task) for task in fusion.tasks]
        for trigger, own in zip(triggers, decoupled, strict=True):
            torch.testing.assert_close(flat(own), flat(trigger.decouple(unified)), rtol=1e-5, atol=1e-6)
    assert fusion.tasks == [f"task{i}" for i in range(27)]
    assert {key: bits.shape for key, bits in fusion.masks[0].items()} == {
        "weight": (246,), "bias": (3,), "scale": (1,), "none": (0,),
    }  # fmt: skip


def test_threads_change_nothing():
    deltas = random_deltas(4, 5, shapes=LARGE)
    expected, before = fused(deltas), torch.get_num_threads()
    one = expected.decouple("task2")
    try:
        torch.set_num_threads(3)
        found = fused(deltas)
        same(found, vars(expected))
        assert flat(found.decouple("task2")).equal(flat(one))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@examples
@given(some_deltas(), st.sampled_from(RULES))
def test_short_streams_equal_the_plain_ones(deltas, rule):  # D10, with ties and zeros
    fusion = Fusion(rule)
    for i, delta in enumerate(deltas):
        terms = [*map(fusion.decouple, fusion.tasks), delta]
        fusion.absorb(f"task{i}", delta)
        agree(fusion, *unify(terms, rule), terms)


@examples
@given(some_deltas(fewest=2))
def test_old_masks_are_cut_by_one_common_mask(deltas):  # D8, D9
    fusion = fused(deltas[:-1])
    masks, tau = masks_of(fusion), flat(fusion.unified)
    fusion.absorb("last", deltas[-1])
    stays = tau.sign() == flat(fusion.unified).sign()
    assert masks_of(fusion)[:-1].equal(masks & stays)
    assert masks_of(fusion)[-1].equal(
        (flat(deltas[-1]) != 0) & (flat(deltas[-1]).sign() == flat(fusion.unified).sign())
    )


@examples
@given(some_deltas(fewest=2))
def test_a_newcomer_flips_what_it_outweighs(deltas):  # D11, in double precision away from rounding
    fusion = fused(deltas[:-1])
    tau, d = flat(fusion.unified), flat(deltas[-1])
    scales = torch.tensor(fusion.scales, dtype=torch.float64)
    weight = tau.double().abs() * (scales[:, None] * masks_of(fusion)).sum(0)
    fusion.absorb("last", deltas[-1])
    flips = (tau * d < 0) & (d.abs() > weight)
    clear = (d.abs() - weight).abs() > 1e-6 * weight
    assert (tau.sign() * flat(fusion.unified).sign() < 0)[clear].equal(flips[clear])


@pytest.mark.parametrize(("tau", "d", "after"), [(2.0, -2.0, -2.0), (-2.0, 2.0, -2.0), (0.0, 0.0, 0.0)])
def test_a_tie_goes_to_the_smaller_value(tau, d, after):  # D11: so a newcomer of equal weight flips + alone
    fusion = fused([{"a": torch.tensor([tau, 1])}, {"a": torch.tensor([d, 1])}])
    assert fusion.unified["a"].tolist() == [after, 1]
    assert masks_of(fusion)[:, 0].tolist() == [tau < 0, d < 0]


@examples
@given(some_deltas())
def test_signs_and_norms_survive_all_sessions(deltas):  # D2, D3
    fusion = fused(deltas)
    for delta, task, norm in zip(deltas, fusion.tasks, fusion.norms, strict=True):
        own = flat(fusion.decouple(task))
        assert own.sign()[own != 0].equal(flat(delta).sign()[own != 0])
        assert own.sign()[own != 0].equal(flat(fusion.unified).sign()[own != 0])
        assert l1(fusion.decouple(task)) == pytest.approx(l1(delta), rel=1e-6) == norm


@pytest.mark.parametrize("rule", RULES)
def test_one_task_comes_back_exactly(rule):  # D6
    (delta,) = random_deltas(3, 1, shapes=LARGE)
    fusion = fused([delta], rule)
    assert flat(fusion.decouple("task0")).equal(flat(delta)) and fusion.scales == [1]
    fusion.unified["weight"] += 1
    assert flat(delta).equal(flat(random_deltas(3, 1, shapes=LARGE)[0]))  # a copy of its own


def test_a_later_task_in_between_changes_the_result():  # D17: fusion is no set operation, the order is part of it
    deltas = random_deltas(5, 3)
    one, other = fused(deltas), fused(deltas[::-1])
    assert not torch.allclose(flat(one.unified), flat(other.unified), rtol=1e-3)


def test_signs_survive_where_products_underflow():
    deltas = [{"a": torch.tensor([1e-30, -2e-30, 1])}, {"a": torch.tensor([3e-30, 1e-30, 1])}]
    fusion = fused(deltas)
    assert fusion.unified["a"].equal(torch.tensor([3e-30, -2e-30, 1]))
    assert masks_of(fusion).int().tolist() == [[1, 1, 1], [1, 0, 1]]


def test_precision_and_layout_of_a_delta_do_not_matter():
    (delta, other) = random_deltas(2, 2)
    wide = {key: value.double() for key, value in other.items()}
    turned = {key: value.clone().t().contiguous().t().requires_grad_() for key, value in other.items() if key == "a"}
    expected = fused([delta, other])
    for form in (wide, {**other, **turned}):
        assert flat(fused([delta, form]).unified).equal(flat(expected.unified))


VALUES = {"a": torch.tensor([2.0, -1, 0]), "b": torch.tensor([3.0])}
BAD = {
    "one absorbed before": ("first", VALUES, "first is absorbed already; the tasks are first, second"),
    "zero": ("third", {"a": torch.zeros(3), "b": torch.zeros(1)}, "The delta of third is zero"),
    "not a number": ("third", {**VALUES, "b": torch.tensor([float("nan")])}, "third: b has values .*not finite"),
    "infinite": ("third", {**VALUES, "a": torch.tensor([1, -float("inf"), 0])}, "third: a has values .*not finite"),
    "too large": ("third", {**VALUES, "b": torch.tensor([1e39], dtype=torch.float64)}, "third: b .*not finite"),
    "another shape": ("third", {**VALUES, "a": torch.ones(4)}, r"third: a has the shape \(4,\), the first \(3,\)"),
    "a name less": ("third", {"a": torch.ones(3)}, "third lacks b"),
    "a name more": ("third", {**VALUES, "c": torch.ones(3)}, "third has c"),
    "integers": ("third", {**VALUES, "a": torch.ones(3, dtype=torch.int64)}, "third: a is torch.int64"),
    "out-voted": (
        "third",
        {"a": torch.tensor([-0.1, 0.1, 0]), "b": torch.tensor([-0.1])},
        "delta of third is out-voted",
    ),
    "out-voting": (
        "third",
        {"a": torch.tensor([-9.0, 9, 1]), "b": torch.tensor([-9.0])},
        "third is absorbed, first is",
    ),
}


@pytest.mark.parametrize(("name", "delta", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("rule", RULES)
def test_a_refused_task_leaves_the_state_as_it_was(name, delta, said, rule):
    fusion = Fusion(rule)
    fusion.absorb("first", VALUES)
    fusion.absorb("second", {"a": torch.tensor([1.0, -3, 0]), "b": torch.tensor([2.0])})
    before = snapshot(fusion)
    with pytest.raises(ValueError, match=said):
        fusion.absorb(name, delta)
    same(fusion, before)
    fusion.absorb("fourth", VALUES)
    assert fusion.tasks == ["first", "second", "fourth"]


def test_a_refused_first_task_leaves_no_trace():
    fusion = Fusion()
    with pytest.raises(ValueError, match="zero"):
        fusion.absorb("first", {"a": torch.zeros(3)})
    same(fusion, vars(Fusion()))
    with pytest.raises(ValueError, match="The delta of first is zero"):
        fusion.absorb("first", {})


def test_absorbing_writes_to_no_tensor_that_was_given_out():
    fusion = fused(random_deltas(4, 3))
    tensors, facts = fusion.state()
    kept, held = snapshot(fusion), Fusion.from_state(tensors, facts)
    fusion.absorb("last", random_deltas(9, 1)[0])
    same(held, kept)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'l2'.*l1, tensor_mean, none"):
        Fusion("l2")
    fusion = fused(random_deltas(4, 2))
    for call in (fusion.decouple, lambda name: fusion.add_to(name, {}, {})):
        with pytest.raises(ValueError, match="task7 is no task.*task0, task1"):
            call("task7")


def test_an_expert_is_the_pretrained_model_and_its_delta(small_chunks):
    deltas = random_deltas(6, 3, shapes=LARGE)
    pretrained = {**random_deltas(7, 1, shapes=LARGE)[0], "frozen": torch.ones(2)}
    fusion = fused(deltas)
    expected = apply_delta(pretrained, fusion.decouple("task1"))
    out = {key: torch.nn.Parameter(torch.full_like(value, 7)) for key, value in pretrained.items()}
    turned = torch.empty(53, 37).t()
    for target in (out, {**out, "weight": turned}, dict(pretrained)):
        fusion.add_to("task1", pretrained, target)
        assert all(target[key].equal(expected[key]) for key in LARGE)
    assert out["frozen"].tolist() == [7, 7]


def test_an_expert_in_half_precision_is_rounded_once():
    fusion = fused(random_deltas(6, 2))
    pretrained = random_deltas(7, 1)[0]
    out = {key: torch.empty_like(value, dtype=torch.bfloat16) for key, value in pretrained.items()}
    fusion.add_to("task0", pretrained, out)
    expected = apply_delta(pretrained, fusion.decouple("task0"))
    assert all(out[key].equal(value.bfloat16()) for key, value in expected.items())


def test_weights_that_do_not_fit_are_refused_before_any_is_written():
    fusion, out = fused(random_deltas(6, 2)), {key: v.clone() for key, v in random_deltas(7, 1)[0].items()}
    before = flat(out)
    for pretrained, said in (({"a": out["a"]}, "pretrained weights lacks b"), ({**out, "b": torch.ones(2)}, r"\(2,\)")):
        with pytest.raises(ValueError, match=said):
            fusion.add_to("task0", pretrained, out)
    assert flat(out).equal(before)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_state_comes_back(count):
    deltas = random_deltas(8, count + 1, shapes=LARGE)
    fusion = fused(deltas[:count])
    tensors, facts = fusion.state()
    back = Fusion.from_state(tensors, json.loads(json.dumps(facts, sort_keys=True)))
    same(back, snapshot(fusion))
    back.absorb("next", deltas[-1])
    fusion.absorb("next", deltas[-1])
    same(back, snapshot(fusion))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, facts: facts.update(scale="l3"), "'l3'"),
        (lambda tensors, facts: facts["tasks"].append("task9"), r"'task9'\], scales"),
        (lambda tensors, facts: facts["tasks"].__setitem__(0, "task1"), "'task1', 'task1'"),
        (lambda tensors, facts: facts["scales"].__setitem__(0, float("nan")), "scales .nan, .*above 0"),
        (lambda tensors, facts: facts["norms"].__setitem__(0, 0.0), "norms .0.0, .*above 0"),
        (lambda tensors, facts: tensors.pop("unified.a"), "unified.a: the shape is none"),
        (lambda tensors, facts: tensors.update({"mask.3": tensors["mask.0"]}), "mask.3.*expected none"),
        (lambda tensors, facts: tensors.update({"mask.1": tensors["mask.1"][1:]}), r"mask.1: the shape is \(7,\)"),
        (lambda tensors, facts: tensors.update({"mask.1": tensors["mask.1"].int()}), "mask of task1 is torch.int32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, said):
    tensors, facts = fused(random_deltas(8, 3)).state()
    change(tensors, facts)
    with pytest.raises(ValueError, match=said):
        Fusion.from_state(tensors, facts)
