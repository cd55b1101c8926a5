"""Batch norms that take their statistics over the parts of a batch in all processes of a run.

Ioffe and Szegedy, arXiv 1502.03167. torch's SyncBatchNorm refuses tensors on a CPU and needs its own wrapper; these
have the keys of torch's own layers and are them, to the last bit, in one process and in evaluation.
Letters: N all elements of a channel (batch and places), C channels.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dassl.utils.distributed import all_reduce, world_size


class _OverAll:
    """Mixin in front of a batch norm of torch."""

    share = 1.0  # of the batch that this process has a part of; at 0 it holds a copy, which must not count

    def forward(self, x):
        """(B, C, ...) -> the same, normalised. In training every process must call this, as often as the others.

        Raises:
            ValueError: a channel has one element in all processes together.
        """
        if world_size() == 1 or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        mine = x.numel() // x.shape[1]
        if self.share and round(mine / self.share) < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, float(self.share > 0))
        if self.track_running_stats:
            self._move_running(mean, var * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _move_running(self, mean, var):
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), step)
        self.running_var.lerp_(var.to(self.running_var), step)


class BatchNorm1d(_OverAll, nn.BatchNorm1d):
    """nn.BatchNorm1d over the whole batch of several processes."""


class BatchNorm2d(_OverAll, nn.BatchNorm2d):
    """nn.BatchNorm2d over the whole batch of several processes."""


class _Normalise(torch.autograd.Function):
    """(x, weight or None, bias or None, eps, counts) -> (y, mean (C,), biased variance (C,), N (1,)).

    counts: 1.0, or 0.0 in a process whose x is not to count. Statistics are float64: there the mean square minus
    the square of the mean loses nothing that matters. The gradient with respect to x is that of the sum of all
    processes' losses; those of weight and bias are of this process's alone, as of any other parameter.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, counts):
        axes, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        wide = x.double()
        one = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        sums = all_reduce(torch.cat([wide.sum(axes), wide.square().sum(axes), one]) * counts)
        (total, squares), count = sums[:-1].chunk(2), sums[-1:]
        mean = total / count
        var = (squares / count - mean.square()).clamp(min=0)
        inverse = (var + eps).rsqrt()
        flat = ((wide - mean.view(shape)) * inverse.view(shape)).to(torch.promote_types(x.dtype, torch.float32))
        y = flat if weight is None else flat * weight.view(shape) + bias.view(shape)
        ctx.save_for_backward(flat, weight, inverse, count)
        ctx.counts, ctx.axes, ctx.shape = counts, axes, shape
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        flat, weight, inverse, count = ctx.saved_tensors
        grad_bias = grad.double().sum(ctx.axes)
        grad_weight = (grad.double() * flat).sum(ctx.axes)
        mean_grad, mean_product = (all_reduce(torch.cat([grad_bias, grad_weight])) / count).chunk(2)
        rest = mean_grad.view(ctx.shape) + flat * mean_product.view(ctx.shape)
        own = (grad.double() - ctx.counts * rest) * inverse.view(ctx.shape)
        if weight is None:
            return own.to(grad.dtype), None, None, None, None
        own = (own * weight.view(ctx.shape)).to(grad.dtype)
        return own, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None


def set_share(model, share):
    """Tell the batch norms of `model` what share (0 to 1) of the next batch this process has."""
    for module in model.modules():
        if isinstance(module, _OverAll):
            module.share = share


def takes_own_part(module):
    """Is it a batch norm that, in training, knows the part of this process alone?"""
    return isinstance(module, _BatchNorm) and not isinstance(module, _OverAll)
