"""From the config to the data set, its transforms and its loaders."""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode as CN

from dassl.config import complete
from dassl.utils import UserError, get_logger
from dassl.utils.device import choose_device
from dassl.utils.files import signals_wait
from dassl.utils.late import forwarding

from . import transforms
from .datasets import Datum, build_dataset
from .samplers import build_sampler
from .views import ViewSampler, relative_key, seeded_view, view_seed

# imported from here by Dassl's users
__getattr__ = forwarding(__name__, "dassl.data.transforms:INTERPOLATION_MODES dassl.data.transforms:build_transform")

Transform = Callable | Sequence[Callable] | None
Wrapper = Callable[..., Dataset] | None  # in the place of DatasetWrapper


def image_reading(cfg: CN) -> dict[str, Any]:
    """What cfg.INPUT says of how image files are read, as arguments of Datum.load_image; {} where it is as ever."""
    reading = {"max_pixels": cfg.INPUT.MAX_PIXELS, "exif_orientation": cfg.INPUT.EXIF_ORIENTATION}
    return {name: value for name, value in reading.items() if value}


class DatasetWrapper(Dataset):
    """Item i of `data_source` as a dict: label, domain, impath, index, and the image.

    img: (3, H, W) float32, or a list of K such in training if K > 1, or the PIL image if transform is None.
    img2, img3, ...: the further views if `transform` is a list. img0: (3, H, W) without augmentation, if
    cfg.DATALOADER.RETURN_IMG0.

    In training, with cfg.INPUT.VIEW_SEEDS and an index that carries a view number (ViewIndex), the
    augmentation is drawn from that view's own stream and the global random streams stay where they are.
    """

    sample_bank: Callable | None = None  # in the place of a feature bank's encoding all images: of --check

    def __init__(self, cfg: CN, data_source: Sequence[Datum], transform: Transform = None, is_train: bool = False):
        self.cfg = complete(cfg)
        self.data_source = data_source
        self.transform: Any = transform  # one transform, a list of them, or None
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.root = cfg.DATASET.ROOT
        self.reading = image_reading(cfg)
        self.looked: dict[bool, tuple[float, str]] = {}  # when a feature bank looked at the files, and their digest
        self.seed = cfg.SEED if is_train and cfg.INPUT.VIEW_SEEDS else None  # None: the global streams
        if self.k_tfm > 1 and transform is None:
            raise UserError("Cannot augment the image K times because transform is None")
        self.to_tensor: Any = self._plain_transform() if self.return_img0 else None

    def _plain_transform(self):
        import torchvision.transforms as T

        mode = transforms.INTERPOLATION_MODES[self.cfg.INPUT.INTERPOLATION]
        steps: list[Callable] = [T.Resize(self.cfg.INPUT.SIZE, mode), T.ToTensor()]
        if "normalize" in self.cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}
        image = item.load_image(**self.reading)
        view = getattr(idx, "view", None) if self.seed is not None else None
        several = isinstance(self.transform, (list, tuple))
        for i, transform in enumerate(self.transform if several else [self.transform]):
            # further views are independent of the first: their own streams
            key = relative_key(item.impath, self.root) + (f"#{i + 1}" if i else "")
            output[f"img{i + 1}" if i else "img"] = self._transform_image(transform, image, view, key)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _transform_image(self, transform, image, view=None, key=""):
        """`transform` of `image`, K times; (3, H, W), or a list if K > 1. view None: the global streams."""
        if transform is None:
            return image
        images = []
        for k in range(self.k_tfm):
            stream = contextlib.nullcontext()
            if view is not None:
                seed = view_seed(self.seed, view * self.k_tfm + k, key)
                stream = seeded_view(seed, torch_only=transforms.draws_from_torch_only(transform))
            with stream:
                images.append(transform(image))
        return images if self.k_tfm > 1 else images[0]


GRACE = 4.0  # seconds


class Loader(DataLoader):
    """DataLoader whose workers start whole: a signal that comes meanwhile is heard right after."""

    def __iter__(self):
        with signals_wait():
            return super().__iter__()


def build_data_loader(
    cfg: CN,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform = None,
    is_train: bool = True,
    dataset_wrapper: Wrapper = None,
) -> DataLoader:
    """DataLoader over a list of Datum; batches as DatasetWrapper's items, stacked.

    The last short batch is dropped in training only, and only if there is a full one. Of DATALOADER.NUM_WORKERS no more
    start than there are cores, where that changes nothing. With cfg.INPUT.VIEW_SEEDS a training sampler is wrapped in
    ViewSampler, which changes neither order nor draws.
    """
    complete(cfg)
    if not data_source:
        raise UserError(
            f"data set {cfg.DATASET.NAME}: the list of {'training' if is_train else 'test'} images is empty"
        )
    sampler = build_sampler(
        sampler_type, cfg=cfg, data_source=data_source, batch_size=batch_size, n_domain=n_domain, n_ins=n_ins
    )
    if is_train and cfg.INPUT.VIEW_SEEDS:
        sampler = ViewSampler(sampler)
    workers = worker_count(cfg, dataset_wrapper)
    wrapped = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # said by DataManager
        loader = Loader(
            wrapped,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            drop_last=is_train and len(data_source) >= batch_size,
            pin_memory=choose_device(cfg.USE_CUDA).type == "cuda",
            worker_init_fn=own_group,
            persistent_workers=cfg.DATALOADER.PERSISTENT and workers > 0,
        )
    if not len(loader):
        raise UserError(f"data set {cfg.DATASET.NAME}: {sampler_type} makes no batch of {batch_size}")
    return loader


def own_group(worker: int) -> None:
    """In a loader's worker: signals to the group of the process that it loads for are that one's, which ends it.

    SIGTERM to all processes of a run, as batch systems send it, leaves it the time in which that one ends its step.
    """
    os.setpgrp()
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGALRM))  # see `Loader`


def worker_count(cfg: CN, dataset_wrapper: Wrapper = None) -> int:
    """DATALOADER.NUM_WORKERS, but no more than there are cores where their number cannot change what is drawn."""
    asked, usable = cfg.DATALOADER.NUM_WORKERS, cores()
    return min(asked, usable) if cfg.INPUT.VIEW_SEEDS and dataset_wrapper is None else asked


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DataManager:
    """The data set of cfg and its loaders: train_loader_x, train_loader_u, val_loader, test_loader."""

    def __init__(self, cfg: CN, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        dataset = build_dataset(cfg)
        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)

        def loader(node, source, is_train=False):
            words: dict = {"tfm": tfm_train if is_train else tfm_test, "dataset_wrapper": dataset_wrapper}
            words |= {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {"n_domain": 0, "n_ins": 0}
            return build_data_loader(cfg, node.SAMPLER, source, node.BATCH_SIZE, is_train=is_train, **words)

        nodes, used = cfg.DATALOADER, worker_count(cfg, dataset_wrapper)
        if cores() < nodes.NUM_WORKERS:
            doing = f"{used} are used" if used < nodes.NUM_WORKERS else "fewer may be faster"
            get_logger().info(f"DATALOADER.NUM_WORKERS is {nodes.NUM_WORKERS}, there are {cores()} cores: {doing}")
        node_u = nodes.TRAIN_X if nodes.TRAIN_U.SAME_AS_X else nodes.TRAIN_U
        self.dataset = dataset
        self.train_loader_x = loader(nodes.TRAIN_X, dataset.train_x, is_train=True)
        self.train_loader_u = loader(node_u, dataset.train_u, is_train=True) if dataset.train_u else None
        self.val_loader = loader(nodes.TEST, dataset.val) if dataset.val else None
        self.test_loader = loader(nodes.TEST, dataset.test)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(attrgetter("_num_classes"))
    num_source_domains = property(attrgetter("_num_source_domains"))
    lab2cname = property(attrgetter("_lab2cname"))

    def show_dataset_summary(self, cfg: CN) -> None:
        """Log name, domains, class count and list sizes."""
        domains = {"Source": cfg.DATASET.SOURCE_DOMAINS, "Target": cfg.DATASET.TARGET_DOMAINS}
        parts = {f"# {name}": len(getattr(self.dataset, name) or ()) for name in ("train_x", "train_u", "val", "test")}
        rows = [("Dataset", cfg.DATASET.NAME)]
        rows += [(title, ", ".join(names)) for title, names in domains.items() if names]
        rows += [(title, f"{count:,}") for title, count in {"# classes": self.num_classes, **parts}.items() if count]
        width = max(len(value) for _, value in rows)
        line = f"{'-' * 9}  {'-' * width}"
        get_logger().debug("\n".join([line, *(f"{name:9}  {value}" for name, value in rows), line]))


def _transform(cfg, custom, is_train):
    if custom is None:
        return transforms.build_transform(cfg, is_train=is_train)
    get_logger().info(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom
