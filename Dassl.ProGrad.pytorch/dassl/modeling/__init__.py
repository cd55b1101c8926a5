"""Networks by name, for trainers that do not start from CLIP."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    backbone="BACKBONE_REGISTRY Backbone build_backbone",
    head="HEAD_REGISTRY build_head",
    network="NETWORK_REGISTRY build_network",
)
