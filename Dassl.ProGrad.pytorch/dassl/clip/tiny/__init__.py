"""The built-in tiny CLIP: architecture, word list, weights (see README.md)."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(__name__, load="TinyBackbone load_tiny random_tiny")
