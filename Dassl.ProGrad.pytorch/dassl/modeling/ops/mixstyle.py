"""MixStyle (Zhou et al. 2021, arXiv 2104.02008): feature statistics of two images mixed, in training.

Letters: B batch, C channels, H and W height and width.
"""

import contextlib
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dassl.utils import check_availability

MIXES = ("random", "crossdomain")


class MixStyle(nn.Module):
    """With probability p, each map takes mean and deviation part-way to those of another one in the batch.

    alpha: of the Beta(alpha, alpha) that draws how much each map keeps. mix: the other one is any (random), or one
    of the other half of the batch, where the halves are two domains (crossdomain). Identity in evaluation.
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, mix: str = "random"):
        super().__init__()
        self.p = p
        self.beta = torch.distributions.Beta(alpha, alpha)
        self.eps = eps
        self.alpha = alpha
        self._activated = True
        self.update_mix_method(mix)

    def set_activation_status(self, status: bool = True) -> None:
        """Switch the mixing on or off, apart from train() and eval()."""
        self._activated = status

    def update_mix_method(self, mix: str = "random") -> None:
        """Raises UserError for an unknown one."""
        check_availability(mix, MIXES, f"{type(self).__name__}'s mix")
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        share = self.beta.sample((len(x), 1, 1, 1)).to(x)
        return self.mixed(x, share, self._others(len(x)).to(x.device))

    def mixed(self, x: Tensor, share: Tensor, other: Tensor) -> Tensor:
        """Hook: x with `share` (B, 1, 1, 1) of its own statistics, and the rest from the maps `other` (B,).

        Gradients do not pass through the statistics.
        """
        mean = x.mean((2, 3), keepdim=True).detach()
        deviation = (x.var((2, 3), keepdim=True) + self.eps).sqrt().detach()
        mean_mixed = share * mean + (1 - share) * mean[other]
        deviation_mixed = share * deviation + (1 - share) * deviation[other]
        return (x - mean) / deviation * deviation_mixed + mean_mixed

    def _others(self, size):
        """Whose statistics each of `size` maps is mixed with."""
        if self.mix == "random":
            return torch.randperm(size)
        half = size // 2  # counted from the end, as Dassl does
        return torch.cat([size - 1 - torch.randperm(size - half), half - 1 - torch.randperm(half)])


def mixing_controls(kind: type[MixStyle]) -> tuple[Callable, ...]:
    """What steers the layers of class `kind` in a model.

    Four functions for `model.apply` (activate, crossdomain, deactivate, random), two contexts (run_with, run_without).
    """

    def on_each(change):
        return lambda module: change(module) if type(module) is kind else None

    activate = on_each(lambda layer: layer.set_activation_status(True))
    deactivate = on_each(lambda layer: layer.set_activation_status(False))
    mixes = {mix: on_each(lambda layer, mix=mix: layer.update_mix_method(mix)) for mix in MIXES}

    @contextlib.contextmanager
    def switched(model, inside, afterwards):
        model.apply(inside)
        try:
            yield
        finally:
            model.apply(afterwards)

    def run_with(model, mix=None):
        """Context: mixing inside, by `mix` if given; off afterwards."""
        if mix is not None:
            model.apply(on_each(lambda layer: layer.update_mix_method(mix)))
        return switched(model, activate, deactivate)

    def run_without(model):
        """Context: no mixing inside; on again afterwards."""
        return switched(model, deactivate, activate)

    return activate, mixes["crossdomain"], deactivate, mixes["random"], run_with, run_without


activate_mixstyle, crossdomain_mixstyle, deactivate_mixstyle, random_mixstyle, *_contexts = mixing_controls(MixStyle)
run_with_mixstyle, run_without_mixstyle = _contexts
