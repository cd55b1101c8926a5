"""Describable Textures (Cimpoi et al., CVPR 2014): 47 textures. The split is CoOp's, of all images."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    folders = ("dtd",)
    images = ("images", "dtd/images")
    split_file = "split_zhou_DescribableTextures.json"
    split_link = drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x")
    templates = {"coop": "{} texture.", "kgcoop": "a photo of a {}, a type of texture."}
