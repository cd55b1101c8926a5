"""Pairwise distances. M, N: points, D: dimensions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.utils import UserError


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared L2 between the rows of (M, D) and (N, D) -> (M, N)."""
    squares = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    return torch.addmm(squares, input1, input2.t(), alpha=-2)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """1 - cosine between the rows of (M, D) and (N, D) -> (M, N)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances between the rows of (M, D) and (N, D) -> (M, N); "euclidean" is squared. UserError: unknown metric."""
    metrics = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    if metric not in metrics:
        raise UserError(f"metric is expected to be one of {list(metrics)}, but got {metric!r}")
    return metrics[metric](input1, input2)
