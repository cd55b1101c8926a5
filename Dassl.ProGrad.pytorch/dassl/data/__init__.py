"""Data: from image lists to batches."""

from .data_manager import DataManager, DatasetWrapper, build_data_loader
from .fewshot import few_shot, few_shot_indices, group_indices, subsample_classes
from .views import ViewIndex, ViewSampler, relative_key, seeded_view, view_seed

__all__ = [
    "DataManager",
    "DatasetWrapper",
    "ViewIndex",
    "ViewSampler",
    "build_data_loader",
    "few_shot",
    "few_shot_indices",
    "group_indices",
    "relative_key",
    "seeded_view",
    "subsample_classes",
    "view_seed",
]
