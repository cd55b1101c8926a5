"""EuroSAT (Helber et al., 2019): 10 kinds of land seen by a satellite."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive, same_template


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    folders = ("eurosat", "EuroSAT")
    images = ("2750",)
    split_file = "split_zhou_EuroSAT.json"
    split_link = drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o")
    templates = same_template("a centered satellite photo of {}.")
