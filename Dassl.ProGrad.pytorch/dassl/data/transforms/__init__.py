"""Image transforms by name."""

from .transforms import INTERPOLATION_MODES, TRANSFORMS, build_transform, describe_transform, draws_from_torch_only

__all__ = ["INTERPOLATION_MODES", "TRANSFORMS", "build_transform", "describe_transform", "draws_from_torch_only"]
