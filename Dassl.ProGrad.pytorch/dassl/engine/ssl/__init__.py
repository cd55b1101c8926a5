"""Trainers of semi-supervised learning: a few labelled images (DATASET.NUM_LABELED), many without labels."""

from .fixmatch import FixMatch
from .sup_baseline import SupBaseline

__all__ = ["FixMatch", "SupBaseline"]
