"""UCF101 (Soomro et al., 2012): 101 actions, the middle frame of each video."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive, same_template


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    folders = ("ucf101",)
    images = ("UCF-101-midframes",)
    split_file = "split_zhou_UCF101.json"
    split_link = drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y")
    templates = same_template("a photo of a person doing {}.")
