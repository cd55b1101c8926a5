"""Networks by name."""

from torch import nn

from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The network registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return NETWORK_REGISTRY.build(name, "A network", verbose, **kwargs)
