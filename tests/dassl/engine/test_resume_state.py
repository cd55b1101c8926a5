"""What a resume file is made of: random states, fingerprints, plain values."""

import pytest
import torch
from torch import nn

from dassl.engine.state import fingerprint, plain, rng_state, set_rng_state
from dassl.utils import set_random_seed


def test_random_states_come_back():
    import random

    import numpy as np

    def draws():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    set_random_seed(3)
    np.random.randn()  # numpy holds a second normal number back
    state = plain(rng_state())
    first = draws()
    draws()
    set_rng_state(state)
    assert draws() == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.complex64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (8, 8)])
def test_a_fingerprint_sees_any_change_of_one_value(dtype, shape):
    tensor = torch.zeros(shape, dtype=dtype)
    before = fingerprint(tensor)
    assert fingerprint(tensor) == before
    tensor.data.view(-1)[-1] = 1  # a write that torch does not count
    assert fingerprint(tensor)[1:] != before[1:]
    view = torch.zeros(4, 4, dtype=dtype)[1:, 1]  # neither contiguous nor aligned
    before = fingerprint(view)
    view.data[2] = 1
    assert fingerprint(view) != before


def test_a_fingerprint_of_odd_tensors():
    for tensor in (torch.empty(0), torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        assert fingerprint(tensor) == fingerprint(tensor)


def test_plain_keeps_versions_of_modules_and_refuses_objects():
    state = plain(nn.BatchNorm1d(2).state_dict())
    assert state._metadata[""]["version"] == 2
    with pytest.raises(TypeError, match="a function"):
        plain({"a": [test_random_states_come_back]})
