"""Top-k accuracy and distances."""

import pytest
import torch

from dassl.metrics import (
    compute_accuracy,
    compute_distance_matrix,
    cosine_distance,
    euclidean_squared_distance,
)
from dassl.utils import UserError


def test_accuracy_in_percent_for_several_k():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0]])
    labels = torch.tensor([0, 1, 0, 2])
    top1, top2, top3 = compute_accuracy(logits, labels, topk=(1, 2, 3))
    assert (top1.item(), top2.item(), top3.item()) == (50.0, 75.0, 100.0)
    assert top1.shape == (1,)
    assert compute_accuracy((logits, "features"), labels)[0].item() == 50.0


def test_distances_agree_with_their_definitions():
    a, b = torch.randn(4, 6), torch.randn(3, 6)
    squared = (a[:, None] - b[None]).square().sum(-1)
    assert torch.allclose(euclidean_squared_distance(a, b), squared, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    assert torch.allclose(cosine_distance(a, b), 1 - cosine, atol=1e-6)
    assert torch.allclose(compute_distance_matrix(a, b), squared, atol=1e-5)
    assert torch.allclose(compute_distance_matrix(a, b, metric="cosine"), 1 - cosine, atol=1e-6)


def test_an_unknown_distance_is_refused():
    with pytest.raises(UserError, match="euclidean.*cosine.*manhattan"):
        compute_distance_matrix(torch.zeros(2, 6), torch.zeros(3, 6), metric="manhattan")
