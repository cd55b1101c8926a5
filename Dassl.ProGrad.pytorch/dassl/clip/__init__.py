"""One interface to any CLIP, three backends, and a bank of image features. No CLIP is vendored here."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    backbone="Block CLIP_REGISTRY ClipBackbone Preprocess cosine_logits tensor_digest text_classifier",
    compiling="compiled",
    build="build_clip build_clip_from_cfg cached_clip check_input is_clip",
    shared_prefix="layout_of",
    text_pass="positionwise",
)
