"""Networks by name."""

from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name, verbose=True, **kwargs):
    """The network registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return NETWORK_REGISTRY.build(name, "A network", verbose, **kwargs)
