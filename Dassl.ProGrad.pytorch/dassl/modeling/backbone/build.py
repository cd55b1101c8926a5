"""Backbones by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dassl.utils import Registry

if TYPE_CHECKING:
    from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE", built_in=("dassl.modeling.backbone.resnet", "dassl.modeling.backbone.small"))


def build_backbone(name: str, verbose: bool = True, **kwargs) -> Backbone:
    """The backbone registered as `name`, built with `kwargs`. Raises UserError with the nearest name."""
    return BACKBONE_REGISTRY.build(name, "A backbone", verbose, **kwargs)
