"""Gradient reversal (Ganin and Lempitsky 2015, arXiv 1409.7495)."""

import torch
from torch import nn


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.scale * grad, None


class ReverseGrad(nn.Module):
    """Identity whose gradient is multiplied by `-grad_scaling`."""

    def forward(self, x: torch.Tensor, grad_scaling: float = 1.0) -> torch.Tensor:
        return _Reverse.apply(x, grad_scaling)
