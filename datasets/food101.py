"""Food-101 (Bossard et al., ECCV 2014). The split is CoOp's, of all images, not the official one."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive, same_template


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    folders = ("food-101", "food101")
    images = ("images",)
    split_file = "split_zhou_Food101.json"
    split_link = drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl")
    templates = same_template("a photo of {}, a type of food.")
