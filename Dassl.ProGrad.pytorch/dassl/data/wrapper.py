"""DatasetWrapper: a list of Datum as a torch data set of dictionaries.

Shapes: H, W the input size; K = cfg.DATALOADER.K_TRANSFORMS.
"""

import contextlib

import torchvision.transforms as T
from torch.utils.data import Dataset

from dassl.config import complete
from dassl.utils import UserError

from .transforms import INTERPOLATION_MODES, draws_from_torch_only
from .views import relative_key, seeded_view, view_seed


def image_reading(cfg):
    """What cfg.INPUT says of how image files are read, as arguments of Datum.picture; {} where it is as ever."""
    reading = {"max_pixels": cfg.INPUT.MAX_PIXELS, "exif_orientation": cfg.INPUT.EXIF_ORIENTATION}
    return {name: value for name, value in reading.items() if value}


class DatasetWrapper(Dataset):
    """Item i of `data_source` as a dict: label, domain, impath, index, and the picture.

    img: (3, H, W) float32, or a list of K such in training if K > 1, or the PIL picture if transform is None.
    img2, img3, ...: the further views if `transform` is a list. img0: (3, H, W) without augmentation, if
    cfg.DATALOADER.RETURN_IMG0.

    In training, with cfg.INPUT.VIEW_SEEDS and an index that carries a view number (ViewIndex), the
    augmentation is drawn from that view's own stream and the global random streams stay where they are.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = complete(cfg)
        self.data_source = data_source
        self.transform = transform  # one transform, a list of them, or None
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.root = cfg.DATASET.ROOT
        self.reading = image_reading(cfg)
        self.seed = cfg.SEED if is_train and cfg.INPUT.VIEW_SEEDS else None  # None: the global streams
        if self.k_tfm > 1 and transform is None:
            raise UserError("Cannot augment the image K times because transform is None")
        self.to_tensor = self._plain_transform() if self.return_img0 else None

    def _plain_transform(self):
        steps = [
            T.Resize(self.cfg.INPUT.SIZE, INTERPOLATION_MODES[self.cfg.INPUT.INTERPOLATION]),
            T.ToTensor(),
        ]
        if "normalize" in self.cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        picture = item.picture(**self.reading)
        view = getattr(idx, "view", None) if self.seed is not None else None
        key = None if view is None else relative_key(item.impath, self.root)
        if self.transform is None:
            output["img"] = picture
        elif isinstance(self.transform, (list, tuple)):
            for i, transform in enumerate(self.transform):
                # further views are independent of the first: their own streams
                name = key if i == 0 or key is None else f"{key}#{i + 1}"
                output[f"img{i + 1}" if i else "img"] = self._transform_image(transform, picture, view, name)
        else:
            output["img"] = self._transform_image(self.transform, picture, view, key)
        if self.return_img0:
            output["img0"] = self.to_tensor(picture)
        return output

    def _transform_image(self, transform, picture, view=None, key=None):
        """`transform` of `picture`, K times; (3, H, W), or a list if K > 1. view None: the global streams."""
        images = []
        for k in range(self.k_tfm):
            with self._stream(transform, view, k, key):
                images.append(transform(picture))
        return images if self.k_tfm > 1 else images[0]

    def _stream(self, transform, view, k, key):
        if view is None:
            return contextlib.nullcontext()
        seed = view_seed(self.seed, view * self.k_tfm + k, key)
        return seeded_view(seed, torch_only=draws_from_torch_only(transform))
