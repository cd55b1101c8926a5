"""Feature extractors: a module with `out_features`."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    backbone="Backbone",
    build="BACKBONE_REGISTRY build_backbone",
    resnet="resnet18 resnet34 resnet50 resnet101 resnet152",
    small="cnn_small",
)
