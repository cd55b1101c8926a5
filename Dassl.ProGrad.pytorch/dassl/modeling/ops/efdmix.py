"""EFDMix (Zhang et al. 2022, arXiv 2203.07740): MixStyle with whole distributions instead of two moments."""

from torch import Tensor

from .mixstyle import MixStyle, mixing_controls


class EFDMix(MixStyle):
    """Each value moves towards the other map's value of the same rank in its channel."""

    def mixed(self, x: Tensor, share: Tensor, other: Tensor) -> Tensor:
        flat = x.flatten(2)  # (B, C, H*W)
        ordered, places = flat.sort(-1)
        matched = ordered[other].gather(-1, places.argsort(-1))
        return (flat + (matched - flat.detach()) * (1 - share[..., 0])).view_as(x)


activate_efdmix, crossdomain_efdmix, deactivate_efdmix, random_efdmix, *_contexts = mixing_controls(EFDMix)
run_with_efdmix, run_without_efdmix = _contexts
