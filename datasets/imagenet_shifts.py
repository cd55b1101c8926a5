"""The test sets that ImageNet models are tested on elsewhere: ImageNet-V2, -Sketch, -A, -R and ObjectNet.

They have no training images: `train_x` is the test list, which carries the class names, so nothing should be
trained on one. A model is tested on the classes of the set alone, labels 0, 1, ... (200 of -A and -R, 113 of
ObjectNet). DATASET.NUM_SHOTS says how the model was trained and draws nothing here.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, read_json

from .base import FewShotDataset
from .imagenet import ImageNet
from .readers import Lists, class_folders, folder_images, wordnet_names


class ImageNetShift(FewShotDataset):
    """A folder of WordNet folders; class names from classnames.txt beside it or in ImageNet's own folder."""

    test_only = True

    def __init__(self, cfg):
        self._root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        super().__init__(cfg)

    def names(self) -> dict[str, str]:
        """{class folder: name}, in the order of ImageNet's labels."""
        places = [self.dataset_dir, *(os.path.join(self._root, folder) for folder in ImageNet.folders)]
        files = [os.path.join(place, ImageNet.names_file) for place in places]
        for path in files:
            if os.path.isfile(path):
                return wordnet_names(path)
        raise MissingFile(f"no class names in {' or '.join(files)}; where to get them: {ImageNet.names_link}")

    def read(self) -> Lists:
        names = self.names()
        items = folder_images(self.image_dir, class_folders(self.image_dir, names), names)
        return items, [], items


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetShift):
    """Recht et al., ICML 2019, the matched-frequency part: folders 0 ... 999 (or WordNet folders)."""

    folders = ("imagenetv2", "imagenetv2-matched-frequency")
    images = ("imagenetv2-matched-frequency-format-val", "")

    def read(self) -> Lists:
        folders = class_folders(self.image_dir)
        if not all(folder.isdecimal() for folder in folders):
            return super().read()
        names = list(self.names().values())
        folders.sort(key=int)  # as text, 10 would come before 2
        if [int(folder) for folder in folders] != list(range(len(names))):
            raise UserError(
                f"{self.image_dir} has {len(folders)} class folders, {folders[0]} to {folders[-1]}; expected "
                f"0 to {len(names) - 1}, one for each line of {ImageNet.names_file}"
            )
        items = folder_images(self.image_dir, folders, dict(zip(folders, names, strict=True)))
        return items, [], items


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
    names_file = "classes.json"

    def names(self) -> dict[str, str]:
        path = os.path.join(self.dataset_dir, self.names_file)
        if not os.path.isfile(path):
            raise MissingFile(
                f"no {path}; it says which of the class folders are classes of ImageNet and what they are called: "
                '{"alarm_clock": "alarm clock", ...}, 113 of them'
            )
        names = read_json(path)
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise UserError(f'{path}: expected {{"class folder": "class name", ...}}')
        return names

    def read(self) -> Lists:
        names = self.names()
        absent = sorted(set(names) - set(class_folders(self.image_dir)))
        if absent:
            raise MissingFile(f"{len(absent)} folders of {self.names_file} are not below {self.image_dir}: {absent[0]}")
        items = folder_images(self.image_dir, list(names), names)
        return items, [], items
