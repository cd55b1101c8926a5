"""Backbones by name."""

from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE", built_in=("dassl.modeling.backbone.resnet", "dassl.modeling.backbone.small"))


def build_backbone(name, verbose=True, **kwargs):
    """The backbone registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return BACKBONE_REGISTRY.build(name, "A backbone", verbose, **kwargs)
