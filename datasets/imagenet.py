"""ImageNet (Deng et al., CVPR 2009), ILSVRC 2012, and the test sets that its models are tested on elsewhere.

There is no list of validation images beside the 50,000 that everybody tests on: val is test.

ImageNet-V2, -Sketch, -A, -R and ObjectNet have no training images: `train_x` is the test list, which carries the class
names, so nothing should be trained on one. A model is tested on the classes of the set alone, labels 0, 1, ... (200 of
-A and -R, 113 of ObjectNet). DATASET.NUM_SHOTS says how the model was trained and draws nothing here.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError

from .base import FewShotDataset, drive
from .readers import Lists, class_folders, folder_images, read_names, wordnet_names


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """images/train/<folder>/, images/val/<folder>/ and classnames.txt.

    Few-shot draws are from sorted listings, so they are the same on every machine; those of papers that
    followed the order of the file system cannot be had from a seed.
    """

    folders = ("imagenet", "ImageNet")
    images = ("images", "")
    names_link = drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")

    def names(self) -> dict[str, str]:
        """{class folder: name} of classnames.txt, here or in ImageNet's folder beside this one; in label order."""
        beside = (os.path.join(os.path.dirname(self.dataset_dir), folder) for folder in ImageNet.folders)
        files = [os.path.join(place, "classnames.txt") for place in dict.fromkeys([self.dataset_dir, *beside])]
        for path in filter(os.path.isfile, files):
            return wordnet_names(path)
        raise MissingFile(f"no class names in {' or '.join(files)}; where to get them: {self.names_link}")

    def read(self) -> Lists:
        names = self.names()
        roots = [self._first_folder(self.image_dir, (part,), "folder") for part in ("train", "val")]
        folders, test_folders = [class_folders(root, names) for root in roots]
        if folders != test_folders:
            raise UserError(
                f"{roots[0]} and {roots[1]} must hold the same class folders, "
                f"but only one of them has {min(set(folders) ^ set(test_folders))}"
            )
        train, test = [folder_images(root, folders, names) for root in roots]
        return train, test, test


class ImageNetShift(ImageNet):
    """A folder of class folders, some of ImageNet's.

    `complete`: all classes of `names` must be there, else those that are there count. `other_folders`: there may
    be some beside them, which are left out.
    """

    test_only = True
    complete = other_folders = False

    def read(self) -> Lists:
        names = self.names()
        folders = class_folders(self.image_dir, None if self.other_folders else names)
        if self.complete:
            if absent := [name for name in names if name not in folders]:
                raise MissingFile(f"{len(absent)} of {len(names)} classes are not below {self.image_dir}: {absent[0]}")
            folders = list(names)
        items = folder_images(self.image_dir, folders, names)
        return items, [], items


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetShift):
    """Recht et al., ICML 2019, the matched-frequency part: folders 0 ... 999 (or WordNet folders)."""

    folders = ("imagenetv2", "imagenetv2-matched-frequency")
    images = ("imagenetv2-matched-frequency-format-val", "")

    def names(self) -> dict[str, str]:
        names = super().names()
        self.complete = all(folder.isdecimal() for folder in class_folders(self.image_dir))
        return {str(label): name for label, name in enumerate(names.values())} if self.complete else names


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetShift):
    """Wang et al., NeurIPS 2019: 1,000 classes."""

    folders = ("imagenet-sketch", "sketch")
    images = ("images", "sketch", "")


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetShift):
    """Hendrycks et al., CVPR 2021: 200 classes."""

    folders = ("imagenet-adversarial", "imagenet-a")
    images = ("imagenet-a", "")


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetShift):
    """Hendrycks et al., ICCV 2021: 200 classes."""

    folders = ("imagenet-rendition", "imagenet-r")
    images = ("imagenet-r", "")


@DATASET_REGISTRY.register()
class ObjectNet(ImageNetShift):
    """Barbu et al., NeurIPS 2019: of its 313 classes the 113 that ImageNet has too.

    The layout is this project's own, not the archive's: images/<class folder>/ as unpacked, and beside it
    classes.json, {class folder: class name} for the classes to test on, in label order. Other folders are
    left out.
    """

    folders = ("objectnet", "objectnet-1.0")
    complete = other_folders = True

    def names(self) -> dict[str, str]:
        path = os.path.join(self.dataset_dir, "classes.json")
        if not os.path.isfile(path):
            raise MissingFile(
                f"no {path}; it says which of the class folders are classes of ImageNet and what they are called: "
                '{"alarm_clock": "alarm clock", ...}, 113 of them'
            )
        return read_names(path)
