"""Heads by name."""

from dassl.utils import Registry, check_availability, get_logger

HEAD_REGISTRY = Registry("HEAD")


def build_head(name, verbose=True, **kwargs):
    """The head registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    check_availability(name, HEAD_REGISTRY.registered_names(), "A head")
    if verbose:
        get_logger().debug(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)
