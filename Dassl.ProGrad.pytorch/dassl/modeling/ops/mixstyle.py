"""MixStyle (Zhou et al. 2021, arXiv 2104.02008): feature statistics of two pictures mixed, in training.

Letters: B batch, C channels, H and W height and width.
"""

import contextlib
import random

import torch
from torch import nn

from dassl.utils import check_availability

MIXES = ("random", "crossdomain")


class MixStyle(nn.Module):
    """With probability p, each map takes mean and deviation part-way to those of another one in the batch.

    alpha: of the Beta(alpha, alpha) that draws each map's own part. mix: the other one is any (random), or one
    of the other half of the batch, where the halves are two domains (crossdomain). Identity in evaluation.
    """

    def __init__(self, p=0.5, alpha=0.1, eps=1e-6, mix="random"):
        super().__init__()
        self.p = p
        self.beta = torch.distributions.Beta(alpha, alpha)
        self.eps = eps
        self.alpha = alpha
        self._activated = True
        self.update_mix_method(mix)

    def extra_repr(self):
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix}"

    def set_activation_status(self, status=True):
        """Switch the mixing on or off, apart from train() and eval()."""
        self._activated = status

    def update_mix_method(self, mix="random"):
        """Raises UserError for an unknown one."""
        check_availability(mix, MIXES, "MixStyle's mix")
        self.mix = mix

    def forward(self, x):
        """(B, C, H, W) -> the same shape. Gradients do not pass through the statistics."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        mean = x.mean((2, 3), keepdim=True).detach()
        deviation = (x.var((2, 3), keepdim=True) + self.eps).sqrt().detach()
        own = self.beta.sample((len(x), 1, 1, 1)).to(x)
        other = self._others(len(x)).to(x.device)
        mean_mixed = own * mean + (1 - own) * mean[other]
        deviation_mixed = own * deviation + (1 - own) * deviation[other]
        return (x - mean) / deviation * deviation_mixed + mean_mixed

    def _others(self, size):
        """Whose statistics each of `size` maps is mixed with."""
        if self.mix == "random":
            return torch.randperm(size)
        half = size // 2
        return torch.cat([half + torch.randperm(size - half), torch.randperm(half)])


def _on_each(change):
    """A function for `model.apply` that changes MixStyle layers alone."""

    def visit(module):
        if type(module) is MixStyle:
            change(module)

    return visit


activate_mixstyle = _on_each(lambda layer: layer.set_activation_status(True))
deactivate_mixstyle = _on_each(lambda layer: layer.set_activation_status(False))
random_mixstyle = _on_each(lambda layer: layer.update_mix_method("random"))
crossdomain_mixstyle = _on_each(lambda layer: layer.update_mix_method("crossdomain"))


@contextlib.contextmanager
def run_without_mixstyle(model):
    """No mixing inside; on again afterwards."""
    model.apply(deactivate_mixstyle)
    try:
        yield
    finally:
        model.apply(activate_mixstyle)


@contextlib.contextmanager
def run_with_mixstyle(model, mix=None):
    """Mixing inside, by `mix` if given; off afterwards."""
    if mix is not None:
        check_availability(mix, MIXES, "MixStyle's mix")
        model.apply(random_mixstyle if mix == "random" else crossdomain_mixstyle)
    model.apply(activate_mixstyle)
    try:
        yield
    finally:
        model.apply(deactivate_mixstyle)
