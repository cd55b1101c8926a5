"""FGVC Aircraft (Maji et al., 2013): 100 variants, official train, val and test lists."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset, same_template
from .readers import Lists, variant_lists


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    folders = ("fgvc_aircraft", "fgvc-aircraft-2013b/data")
    templates = same_template("a photo of a {}, a type of aircraft.")

    def read(self) -> Lists:
        return variant_lists(self.dataset_dir, self.image_dir)
