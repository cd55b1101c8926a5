"""Heads by name."""

from torch import nn

from dassl.utils import Registry

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The head registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return HEAD_REGISTRY.build(name, "A head", verbose, **kwargs)
