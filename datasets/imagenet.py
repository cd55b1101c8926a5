"""ImageNet (Deng et al., CVPR 2009), ILSVRC 2012: one WordNet folder a class.

There is no list of validation images beside the 50,000 that everybody tests on: val is test.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError

from .base import FewShotDataset, drive
from .readers import Lists, class_folders, folder_images, wordnet_names


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """images/train/<folder>/, images/val/<folder>/ and classnames.txt.

    Few-shot draws are from sorted listings, so they are the same on every machine; those of papers that
    followed the order of the file system cannot be had from a seed.
    """

    folders = ("imagenet", "ImageNet")
    images = ("images", "")
    names_file = "classnames.txt"
    names_link = drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")

    def read(self) -> Lists:
        path = os.path.join(self.dataset_dir, self.names_file)
        if not os.path.isfile(path):
            raise MissingFile(f"ImageNet: no class names in {path}. Where to get them: {self.names_link}")
        names = wordnet_names(path)
        roots = [self._first_folder(self.image_dir, (part,), "folder") for part in ("train", "val")]
        folders, test_folders = [class_folders(root, names) for root in roots]
        if folders != test_folders:
            raise UserError(
                f"ImageNet: {roots[0]} and {roots[1]} must hold the same class folders, "
                f"but only one of them has {min(set(folders) ^ set(test_folders))}"
            )
        train, test = [folder_images(root, folders, names) for root in roots]
        return train, test, test
