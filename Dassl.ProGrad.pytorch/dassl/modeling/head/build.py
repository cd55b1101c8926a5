"""Heads by name."""

from dassl.utils import Registry

HEAD_REGISTRY = Registry("HEAD")


def build_head(name, verbose=True, **kwargs):
    """The head registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return HEAD_REGISTRY.build(name, "A head", verbose, **kwargs)
