"""Trainers of domain adaptation: labelled source domains, unlabelled images of the target domains."""

from .source_only import SourceOnly

__all__ = ["SourceOnly"]
