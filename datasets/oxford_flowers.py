"""Oxford Flowers 102 (Nilsback and Zisserman, 2008)."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive, same_template


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    folders = ("oxford_flowers", "flowers-102")
    images = ("jpg",)
    split_file = "split_zhou_OxfordFlowers.json"
    split_link = drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT")
    templates = same_template("a photo of a {}, a type of flower.")
