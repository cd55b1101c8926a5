"""Trainers of domain adaptation: labelled source domains, unlabelled pictures of the target domains."""

from .source_only import SourceOnly

__all__ = ["SourceOnly"]
