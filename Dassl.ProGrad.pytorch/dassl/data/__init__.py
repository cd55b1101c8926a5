"""Data: from image lists to batches."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    data_manager="DataManager DatasetWrapper build_data_loader",
    fewshot="few_shot group_indices subsample_classes",
    views="ViewBatches ViewIndex ViewSampler relative_key seeded_view view_seed",
)
