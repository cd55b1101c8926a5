"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds of cats and dogs."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, drive, same_template


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    folders = ("oxford_pets", "oxford-iiit-pet")
    images = ("images",)
    split_file = "split_zhou_OxfordPets.json"
    split_link = drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs")
    templates = same_template("a photo of a {}, a type of pet.")
