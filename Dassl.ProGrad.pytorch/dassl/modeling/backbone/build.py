"""Backbones by name."""

from dassl.utils import Registry, check_availability, get_logger

BACKBONE_REGISTRY = Registry("BACKBONE", built_in=("dassl.modeling.backbone.resnet", "dassl.modeling.backbone.small"))


def build_backbone(name, verbose=True, **kwargs):
    """The backbone registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    check_availability(name, BACKBONE_REGISTRY.registered_names(), "A backbone")
    if verbose:
        get_logger().debug(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)
