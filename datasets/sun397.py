"""SUN397 (Xiao et al., CVPR 2010): 397 kinds of places."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    folders = ("sun397", "SUN397")
    images = ("SUN397", "")
    split_file = "split_zhou_SUN397.json"
    split_link = drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq")
