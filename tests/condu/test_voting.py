"""The vote of experts against slow versions of one image and one class at a time."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condu.voting import PRESETS, Vote, prototypes, similarity, vote

RULES = [
    Vote(pretrained, k, weighting, space, temp)
    for pretrained in (False, True)
    for k in (1, 2, 9)
    for weighting, temp in (("uniform", 1.0), ("similarity", 1.0), ("minmax", 1.0), ("minmax", 0.25))
    for space in ("logits", "probabilities")
]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(row):
    return row / row.norm()


def slow_vote(logits, known, rule):
    """One image at a time, in Python numbers."""
    rows = []
    for b, s in enumerate(known.tolist()):
        ranked = sorted(range(len(s)), key=lambda i: (-s[i], i))
        spread = max(max(s) - min(s), 1e-6)
        weights = {
            "uniform": [1.0] * len(s),
            "similarity": s,
            "minmax": [math.exp((x - min(s)) / spread / rule.temp) for x in s],
        }[rule.weighting]
        voters = [(i + 1, weights[i]) for i in ranked[: rule.k]]
        if rule.include_pretrained:
            voters.append((0, weights[ranked[0]]))
        total = torch.zeros(logits.shape[-1], dtype=torch.float64)
        for model, w in voters:
            said = logits[model, b].double()
            total += w * (said.softmax(0) if rule.space == "probabilities" else said)
        rows.append(total)
    return torch.stack(rows).float()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_agrees_with_one_image_at_a_time(rule):
    known = rand(7, 4) / 3  # some below zero
    known[0] = 0.5  # all equal
    known[1, 1:3] = 0.9  # two best
    logits = rand(5, 7, 6, seed=1) * 10
    torch.testing.assert_close(vote(logits, known, rule), slow_vote(logits, known, rule), rtol=1e-5, atol=1e-3)


def test_the_nearest_prototype_counts_and_lengths_do_not():
    groups = [rand(3, 8, seed=1), rand(1, 8, seed=2), rand(5, 8, seed=3)]
    images = rand(6, 8, seed=4)
    slow = [[max(float(unit(x) @ unit(p)) for p in own) for own in groups] for x in images]
    torch.testing.assert_close(similarity(images, groups), torch.tensor(slow), rtol=0, atol=1e-6)
    torch.testing.assert_close(similarity(images * 7, [p * 3 for p in groups]), torch.tensor(slow), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [8, 64, 512])
def test_equal_prototypes_are_equally_near_whatever_the_kernel(width):
    """One product of all rows sums equal ones in different orders on some processors, by their place in a block."""
    for classes, tasks, count in itertools.product((1, 2, 3, 5), (2, 3, 5, 7), (1, 6, 33)):
        shared, images = rand(classes, width, seed=classes), rand(count, width, seed=tasks)
        near = similarity(images, [shared] * (tasks - 1) + [shared.flip(0)])
        assert torch.equal(near, near[:, :1].expand_as(near))


def test_a_prototype_is_the_middle_of_images_and_text():
    features, labels, text = rand(20, 8), torch.tensor([0, 2] * 10), rand(3, 8, seed=1) / 3
    found = prototypes(features, labels, text)
    for c in (0, 2):
        images = sum(unit(x) for x, y in zip(features, labels, strict=True) if y == c) / 10
        torch.testing.assert_close(found[c], unit((images + text[c]) / 2))
    torch.testing.assert_close(found[1], unit(text[1]))  # no image
    torch.testing.assert_close(prototypes(features * 5, labels, text), found)  # images count by direction
    assert not torch.allclose(prototypes(features, labels, text * 5), found, atol=1e-2)  # text by its own length


def test_prototypes_without_any_image_are_the_text():
    text = rand(3, 8)
    found = prototypes(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), text)
    torch.testing.assert_close(found, text / text.norm(dim=1, keepdim=True))


def test_prototypes_do_not_depend_on_the_order_of_images():
    features, labels, text = rand(10_000, 8), torch.arange(10_000) % 4, rand(4, 8, seed=1)
    mixed = torch.randperm(10_000, generator=torch.Generator().manual_seed(2))
    found = prototypes(features, labels, text)
    torch.testing.assert_close(prototypes(features[mixed], labels[mixed], text), found, rtol=0, atol=1e-7)


def test_ties_go_to_the_earlier_task():
    known = torch.tensor([[0.5, 0.7, 0.7, 0.5], [0.1, 0.1, 0.1, 0.1]])
    assert Vote(False, 1, "uniform").chosen(known).tolist() == [
        [False, True, False, False],
        [True, False, False, False],
    ]
    assert Vote(False, 3, "uniform").chosen(known).tolist() == [[True, True, True, False], [True, True, True, False]]
    many = torch.zeros(3, 300)  # sorts that are not stable differ from here on
    assert Vote(False, 7, "uniform").chosen(many).nonzero()[:, 1].tolist() == list(range(7)) * 3


@pytest.mark.parametrize("rule", PRESETS.values(), ids=list(PRESETS))
def test_k_beyond_the_tasks_means_all(rule):
    known = rand(5, 3)
    assert replace(rule, k=3).chosen(known).all() and replace(rule, k=100).chosen(known).all()
    logits = rand(4, 5, 6)
    assert torch.equal(vote(logits, known, replace(rule, k=3)), vote(logits, known, replace(rule, k=100)))


def test_one_task_alone():
    logits, known = rand(2, 4, 6), rand(4, 1).abs()
    assert torch.equal(vote(logits, known, Vote(False, 4, "uniform")), logits[1])
    torch.testing.assert_close(vote(logits, known, PRESETS["released"]), logits.sum(0))
    torch.testing.assert_close(vote(logits, known, PRESETS["paper"]), known * logits[1])
    # the best is also the worst: minmax gives both models exp(0)
    assert torch.equal(Vote(True, 4, "minmax", temp=0.1).weights(known), torch.ones(4, 2))


def test_presets():
    known = torch.tensor([[0.1, 0.6, 0.2, 0.5, 0.4, 0.3]])
    torch.testing.assert_close(PRESETS["paper"].weights(known), torch.tensor([[0, 0, 0.6, 0, 0.5, 0.4, 0.3]]))
    assert PRESETS["released"].weights(known).tolist() == [[1, 0, 1, 0, 1, 1, 1]]


def test_minmax_takes_the_range_of_all_experts_not_of_the_chosen():
    # (0.6 - 0.2) / (0.8 - 0.2) = 2/3
    found = Vote(True, 2, "minmax", temp=0.5).weights(torch.tensor([[0.2, 0.6, 0.8]]))
    torch.testing.assert_close(found, torch.tensor([[math.exp(2), 0, math.exp(4 / 3), math.exp(2)]]))


def test_negative_similarities_weigh_as_they_are():
    known = torch.tensor([[-0.5, -0.25]])
    assert Vote(True, 1, "similarity").weights(known).tolist() == [[-0.25, 0, -0.25]]
    assert Vote(True, 1, "uniform").weights(known).tolist() == [[1, 0, 1]]
    assert Vote(False, 2, "minmax").weights(known).tolist() == [[0, 1, pytest.approx(math.e)]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(RULES), st.integers(1, 5))
def test_what_the_vote_does_not_depend_on(seed, rule, tasks):
    known, logits = rand(4, tasks, seed=seed), rand(1 + tasks, 4, 5, seed=seed + 1)
    found = vote(logits, known, rule)
    close = {"rtol": 1e-4, "atol": 1e-3}
    mixed = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    again = vote(torch.cat([logits[:1], logits[1:][mixed]]), known[:, mixed], rule)
    torch.testing.assert_close(again, found, **close)  # the order of tasks, without ties
    silent = torch.cat([torch.zeros(4, 1, dtype=torch.bool) | rule.include_pretrained, rule.chosen(known)], 1)
    nonsense = torch.where(silent.T[..., None], logits, torch.full_like(logits, 1e4))
    torch.testing.assert_close(vote(nonsense, known, rule), found, **close)  # who was not run
    torch.testing.assert_close(vote(logits[:, 2:3], known[2:3], rule), found[2:3], **close)  # the other images
    if rule.space == "probabilities":
        torch.testing.assert_close(vote(logits + 3, known, rule), found, **close)
    if rule.weighting == "minmax":
        torch.testing.assert_close(vote(logits, 2 * known + 1, rule), found, **close)


def test_probabilities_of_equal_voters_sum_to_their_number():
    found = vote(rand(4, 6, 5), rand(6, 3), Vote(True, 2, "uniform", "probabilities"))
    torch.testing.assert_close(found.sum(1), torch.full((6,), 3.0))


def test_half_precision_logits_are_summed_in_full():
    logits, known = rand(4, 6, 5).bfloat16(), rand(6, 3)
    found = vote(logits, known, PRESETS["paper"])
    assert found.dtype == torch.float32
    assert torch.equal(found, vote(logits.float(), known, PRESETS["paper"]))


def test_no_gradient_is_kept():
    features, text = rand(4, 8).requires_grad_(), rand(2, 8).requires_grad_()
    own = prototypes(features, torch.tensor([0, 1, 0, 1]), text)
    known = similarity(features, [own])
    for rule in RULES:
        assert not vote(rand(2, 4, 3).requires_grad_(), known.requires_grad_(), rule).requires_grad
        assert not rule.weights(known).requires_grad
    assert not own.requires_grad


def test_the_lowest_temperature_stays_finite():
    found = vote(torch.full((3, 1, 2), 1e4), torch.tensor([[0.1, 0.9]]), Vote(True, 2, "minmax", temp=0.02))
    assert found.isfinite().all()
