"""One interface to any CLIP, three backends, and a bank of image features. No CLIP is vendored here."""

from .backbone import (
    Block,
    ClipBackbone,
    Preprocess,
    cosine_logits,
    tensor_digest,
    text_classifier,
)
from .build import CLIP_REGISTRY, build_clip, build_clip_from_cfg, cached_clip, check_input, is_clip

__all__ = [
    "Block",
    "CLIP_REGISTRY",
    "ClipBackbone",
    "Preprocess",
    "build_clip",
    "build_clip_from_cfg",
    "cached_clip",
    "check_input",
    "cosine_logits",
    "is_clip",
    "tensor_digest",
    "text_classifier",
]
