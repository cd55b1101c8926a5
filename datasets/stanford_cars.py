"""Stanford Cars (Krause et al., 2013): 196 makes, models and years."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    folders = ("stanford_cars",)
    images = ("",)
    split_file = "split_zhou_StanfordCars.json"
    split_link = drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT")
