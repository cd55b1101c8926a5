"""Image transforms by name."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    transforms="INTERPOLATION_MODES TRANSFORMS build_transform describe_transform draws_from_torch_only",
)
