"""Networks by name."""

from dassl.utils import Registry, check_availability, get_logger

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name, verbose=True, **kwargs):
    """The network registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    check_availability(name, NETWORK_REGISTRY.registered_names(), "A network")
    if verbose:
        get_logger().debug(f"Network: {name}")
    return NETWORK_REGISTRY.get(name)(**kwargs)
