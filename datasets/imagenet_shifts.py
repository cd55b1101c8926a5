"""The test sets that ImageNet models are tested on elsewhere: ImageNet-V2, -Sketch, -A, -R and ObjectNet.

They have no training images: `train_x` is the test list, which carries the class names, so nothing should be
trained on one. A model is tested on the classes of the set alone, labels 0, 1, ... (200 of -A and -R, 113 of
ObjectNet). DATASET.NUM_SHOTS says how the model was trained and draws nothing here.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile

from .base import FewShotDataset
from .imagenet import ImageNet
from .readers import Lists, class_folders, folder_images, read_names, wordnet_names


class ImageNetShift(FewShotDataset):
    """A folder of class folders; names from classnames.txt beside it or in ImageNet's own folder.

    `complete`: all classes of `names` must be there, else those that are there count. `other_folders`: there may
    be some beside them, which are left out.
    """

    test_only = True
    complete = other_folders = False

    def __init__(self, cfg):
        self._root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        super().__init__(cfg)

    def names(self) -> dict[str, str]:
        """{class folder: name}, in label order."""
        places = [self.dataset_dir, *(os.path.join(self._root, folder) for folder in ImageNet.folders)]
        files = [os.path.join(place, ImageNet.names_file) for place in places]
        for path in files:
            if os.path.isfile(path):
                return wordnet_names(path)
        raise MissingFile(f"no class names in {' or '.join(files)}; where to get them: {ImageNet.names_link}")

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
