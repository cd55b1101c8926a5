"""Labels, ramps and moving averages of semi-supervised training. B: batch, C: classes."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.utils import UserError


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Rows of (B, C) raised to the power `temperature` and normalised to sum 1."""
    powered = p.pow(temperature)
    return powered / powered.sum(1, keepdim=True)


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both from their last row to the first."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one random order of their rows."""
    order = torch.randperm(len(data))
    return data[order], label[order]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) -> (B, C) floats, on the device of the labels."""
    return F.one_hot(label.long(), num_classes).float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """exp(-5 (1 - t)^2) with t = current / rampup_length held in 0 .. 1; 1 if the length is 0."""
    if rampup_length == 0:
        return 1.0
    t = min(max(current / rampup_length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """current / rampup_length, at most 1. Raises UserError if either is negative."""
    if current < 0 or rampup_length < 0:
        raise UserError(f"A ramp needs values of at least 0, but got {current} and {rampup_length}")
    return 1.0 if current >= rampup_length else current / rampup_length


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Parameters of `ema_model` become alpha * own + (1 - alpha) * those of `model`; buffers stay."""
    for average, param in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(param, alpha=1 - alpha)
