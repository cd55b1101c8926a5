"""The built-in tiny CLIP: architecture, word list, weights, and the script that made them (see README.md)."""

from .load import TinyBackbone, load_tiny, random_tiny

__all__ = ["TinyBackbone", "load_tiny", "random_tiny"]
