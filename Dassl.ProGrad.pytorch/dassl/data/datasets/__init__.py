"""Data sets: the registry, the record of one image, and the base class."""

from .base_dataset import DatasetBase, Datum, check_items, unreadable
from .build import DATASET_REGISTRY, build_dataset

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "check_items", "unreadable"]
