"""Batch norms that take their statistics over the parts of a batch in all processes of a run.

Ioffe and Szegedy, arXiv 1502.03167. torch's SyncBatchNorm refuses tensors on a CPU and needs its own wrapper; these
have the keys of torch's own layers and are them, to the last bit, in one process and in evaluation.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dassl.utils.distributed import all_reduce, world_size


class _SumOverAll(torch.autograd.Function):
    """The sum of a tensor over all processes. Its gradient is that of the sum of their losses."""

    @staticmethod
    def forward(ctx, x):
        return all_reduce(x.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return all_reduce(grad.clone())


class _OverAll(_BatchNorm):
    """Mixin in front of a batch norm of torch."""

    share = 1.0  # of the batch that this process has a part of; at 0 it holds a copy, which must not count

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same, normalised. In training every process must call this, as often as the others.

        Statistics are float64: there the mean square minus the square of the mean loses nothing that matters.
        ValueError: a channel has one element in all processes together.
        """
        if world_size() == 1 or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        mine = x.numel() // x.shape[1]
        if self.share and round(mine / self.share) < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        axes, shape, wide = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2), x.double()
        sums = torch.cat([wide.sum(axes), wide.square().sum(axes), wide.new_full((1,), mine)])
        sums = _SumOverAll.apply(sums if self.share else sums * 0)
        (total, squares), count = sums[:-1].chunk(2), sums[-1:]
        mean = total / count
        var = (squares / count - mean.square()).clamp(min=0)
        if self.track_running_stats:
            self._move_running(mean, var * (count / (count - 1)))
        y = (wide - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        y = y.to(torch.promote_types(x.dtype, torch.float32))
        return (y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y).to(x.dtype)

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


def set_share(model: nn.Module, share: float) -> None:
    """Tell the batch norms of `model` what share (0 to 1) of the next batch this process has."""
    for module in model.modules():
        if isinstance(module, _OverAll):
            module.share = share


def takes_own_part(module: nn.Module) -> bool:
    """Is it a batch norm that, in training, knows the part of this process alone?"""
    return isinstance(module, _BatchNorm) and not isinstance(module, _OverAll)
