"""A module at other weights than its own."""

import pytest
import torch
from torch import nn

from mergetune.weights import swapped_parameters, trainable


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
