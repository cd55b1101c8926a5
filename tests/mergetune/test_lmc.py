"""The path losses: identities of the method, and the closed form against the plain loop."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dassl.clip import cosine_logits
from mergetune.lmc import (
    anchor_distance,
    feature_line_loss,
    interpolate,
    line_logits,
    line_loss,
    line_points,
    weight_distance,
)
from mergetune.stage2 import swapped_parameters, trainable

B, C, D, SCALE = 6, 5, 16, 100.0


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(3)
    image = F.normalize(torch.randn(B, D, generator=g, dtype=torch.float64), dim=-1)
    labels = torch.randint(0, C, (B,), generator=g)
    f2, f = (torch.randn(C, D, generator=g, dtype=torch.float64) * 4 for _ in range(2))
    return image, labels, f2, f.requires_grad_()


def plain_line_loss(image, labels, f2, f, points):
    """Class vectors blended, normalised, and scored point by point."""
    return line_loss(lambda text: F.cross_entropy(cosine_logits(image, text, SCALE), labels), f2, f, points)


@pytest.mark.parametrize(
    ("n", "grid", "expected"),
    [
        (1, "released", [0.1]),
        (5, "released", [0.1, 0.3, 0.5, 0.7, 0.9]),
        (10, "released", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (15, "released", [0.1 + i / 15 for i in range(14)]),  # 0.1 + 14/15 is above 1.01: 14 points, not 15
        (1, "uniform", [0.0]),
        (5, "uniform", [0.0, 0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_grid(n, grid, expected):
    assert line_points(n, grid) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 5, 10, 15])
def test_closed_form_equals_loop(problem, n):
    image, labels, f2, f = problem
    points = line_points(n)
    plain = plain_line_loss(image, labels, f2, f, points)
    plain_gradient = torch.autograd.grad(plain, f)[0]
    ours = feature_line_loss(image, labels, f2, f, torch.tensor(points, dtype=torch.float64), SCALE)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, f)[0], plain_gradient, rtol=1e-8, atol=1e-10)


def test_path_loss_is_the_task_loss_where_the_solutions_meet(problem):
    image, labels, f2, _ = problem
    task = F.cross_entropy(cosine_logits(image, f2, SCALE), labels)
    points = torch.tensor(line_points(5), dtype=torch.float64)
    torch.testing.assert_close(feature_line_loss(image, labels, f2, f2.clone(), points, SCALE), task)


def test_path_ends_are_the_solutions(problem):
    image, _, f2, f = problem
    ends = line_logits(image, f2, f, torch.tensor([0.0, 1.0], dtype=torch.float64), SCALE)
    torch.testing.assert_close(ends[0], cosine_logits(image, f2, SCALE))
    torch.testing.assert_close(ends[1], cosine_logits(image, f, SCALE))


@pytest.mark.parametrize("distance", ["cosine", "l2", "l2sq"])
def test_anchor_and_its_gradient_vanish_at_the_zero_shot_vectors(problem, distance):
    f = problem[3]
    value = anchor_distance(f, f.detach() * 2.5, distance)  # the length of a class vector does not count
    gradient = torch.autograd.grad(value, f)[0]
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert gradient.isfinite().all()
    if distance != "l2":  # the norm has no gradient at 0: rounding decides its direction
        assert gradient.abs().max().item() == pytest.approx(0, abs=1e-12)


def test_l2_has_a_finite_gradient_exactly_at_the_anchor():
    f = torch.eye(3, requires_grad=True)
    anchor_distance(f, f.detach(), "l2").backward()
    assert torch.equal(f.grad, torch.zeros(3, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(2, 9))
def test_squared_l2_is_twice_the_cosine_distance(seed, classes, width):
    g = torch.Generator().manual_seed(seed)
    now, anchor = (torch.randn(classes, width, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        anchor_distance(now, anchor, "l2sq"),
        2 * anchor_distance(now, anchor, "cosine"),
        rtol=1e-9,
        atol=1e-12,
    )


def test_l2_is_the_mean_norm_by_hand():
    now, anchor = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # class 0: |(1, 0) - (0, 1)| = sqrt(2); class 1: both unit vectors are (0, 1)
    assert anchor_distance(now, anchor, "l2").item() == pytest.approx(2**0.5 / 2)


def test_dicts_interpolate_tensor_by_tensor():
    start, end = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.ones(2), "b": torch.ones(1) * 3}
    middle = interpolate(start, end, 0.25)
    assert middle["a"].tolist() == [0.25, 0.25]
    assert middle["b"].item() == 1.5
    with pytest.raises(ValueError, match="different parameters"):
        interpolate(start, {"a": end["a"]}, 0.5)
    with pytest.raises(ValueError, match="shapes"):
        interpolate(torch.zeros(2), torch.zeros(3), 0.5)


def test_weight_distance_sums_over_all_parameters():
    now = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    anchor = {"a": torch.zeros(2), "b": torch.tensor([[1.0]])}
    assert weight_distance(now, anchor).item() == 1 + 4 + 4


# A module at other weights than its own


@pytest.fixture
def module():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    return net.eval()


def test_trainable_leaves_out_what_is_frozen_and_buffers(module):
    assert list(trainable(module)) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]


def test_at_equals_a_copy_that_holds_the_weights(module):
    x, other = torch.randn(5, 3), {name: torch.randn_like(value) for name, value in trainable(module).items()}
    own = module(x)
    with swapped_parameters(module, other):
        borrowed = module(x)
    assert torch.equal(module(x), own)
    module.load_state_dict(other, strict=False)
    assert torch.equal(module(x), borrowed)


def test_gradients_reach_the_tensors_and_not_the_parameters(module):
    t = torch.tensor(0.5, requires_grad=True)
    mixed = {name: t * value.detach() for name, value in trainable(module).items()}
    with swapped_parameters(module, mixed):
        module(torch.randn(5, 3)).sum().backward()
    assert t.grad.abs() > 0
    assert all(value.grad is None for value in module.parameters())


def test_own_weights_come_back_after_an_error_and_wrong_ones_are_refused(module):
    before = dict(module.named_parameters())
    with pytest.raises(RuntimeError, match="inside"), swapped_parameters(module, {"2.bias": torch.zeros(2)}):
        raise RuntimeError("inside")
    wrong = {"0.weight": torch.zeros(4, 3), "2.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"2.bias is \(2,\), given \(3,\)"), swapped_parameters(module, wrong):
        pass
    with pytest.raises(KeyError), swapped_parameters(module, {"2.gain": torch.zeros(2)}):
        pass
    assert all(value is before[name] for name, value in module.named_parameters())
