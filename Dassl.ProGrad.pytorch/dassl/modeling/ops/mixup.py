"""mixup (Zhang et al. 2018, arXiv 1710.09412). B: batch, C: classes."""

import torch
from torch import Tensor


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and label vectors (B, C) mixed pair by pair -> (images, labels) of the same shapes.

    beta: of the Beta(beta, beta) that draws the part of x1 and y1. preserve_order: that part is at least a half.
    """
    part = torch.distributions.Beta(beta, beta).sample((len(x1), 1, 1, 1))
    if preserve_order:
        part = torch.max(part, 1 - part)
    part = part.to(x1.device)
    flat = part[:, :, 0, 0]
    return x1 * part + x2 * (1 - part), y1 * flat + y2 * (1 - flat)
