"""Caltech-101 (Fei-Fei et al., 2004): 100 kinds of objects, without background and the second face class."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    folders = ("caltech-101", "caltech101")
    images = ("101_ObjectCategories",)
    split_file = "split_zhou_Caltech101.json"
    split_link = drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN")
