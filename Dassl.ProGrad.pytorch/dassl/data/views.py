"""Reproducible augmentation: one private random stream per (seed, view, image).

A view is one augmented version of an image. Its stream depends on the run's seed, the view's number (the
epoch, or epoch x K + k when each image is augmented K times) and the image's path, and on nothing else: not
on the number of workers, not on the order of images, not on where a run was resumed.
"""

import contextlib
import copy
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Sampler, default_collate, get_worker_info

PICTURES = 1 << 30  # bytes of decoded images that wait for their next view, in all workers of a loader together


class ViewIndex(int):
    """An index into a data source that carries the number of the view asked for.

    The number travels with the index, because an attribute set on the data set never reaches workers that are
    already running.
    """

    view: int

    def __new__(cls, index: int, view: int = 0):
        self = super().__new__(cls, index)
        self.view = int(view)
        return self

    def __reduce__(self):
        return ViewIndex, (int(self), self.view)


class ViewSampler(Sampler):
    """Wraps a sampler; yields its indices, in its order and with its draws, as ViewIndex(index, epoch).

    The engine calls set_epoch before each epoch. A loop that never does still gets fresh views: without a
    call in between, the next pass moves on by one.
    """

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.epoch = 0
        self._used = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)
        self._used = False

    def __iter__(self) -> Iterator[ViewIndex]:
        if self._used:
            self.epoch += 1
        self._used = True
        epoch = self.epoch
        for index in self.sampler:
            yield ViewIndex(index, epoch)

    def __len__(self):
        return len(self.sampler)


def relative_key(impath: str, root: str) -> str:
    """Name of an image that survives a move of the data: POSIX path below `root`, else the absolute path."""
    path = os.path.abspath(impath)
    if root:
        path = path.removeprefix(os.path.join(os.path.abspath(os.path.expanduser(root)), ""))
    return path.replace(os.sep, "/")


def view_seed(seed: int, view: int, key: str) -> int:
    """64-bit seed of one view of one image: BLAKE2b of "seed/view/key"."""
    name = f"{int(seed)}/{int(view)}/{key}".encode(errors="surrogatepass")  # names of files need not be Unicode
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


@contextlib.contextmanager
def seeded_view(seed: int, torch_only: bool = False) -> Iterator[None]:
    """Inside, torch's CPU generator, Python's random and numpy's global one start from a 64-bit `seed`.

    All three go on afterwards as if nothing had happened. CUDA generators are not touched, which
    torch.manual_seed would do. torch_only leaves out the other two: putting numpy's state back takes longer
    than a crop of a small image (0.3 ms).
    """
    generator = torch.default_generator
    state = generator.get_state()
    others = None if torch_only else (random.getstate(), np.random.get_state())
    generator.manual_seed(seed)
    if not torch_only:
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # numpy takes 32-bit words
    try:
        yield
    finally:
        generator.set_state(state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])


class ViewBatches(IterableDataset):
    """Batches of `pixels` (a DatasetWrapper), each in several views, an image decoded once for all of them.

    work: (indices of a batch, numbers of its views) each. Yields {"img": (b, 3, H, W), or a list of K such, ...} view
    by view; each worker its part of every batch, maybe none ({}). Images beyond PICTURES are decoded for each view.
    """

    def __init__(self, pixels: Any, work: Sequence[tuple[torch.Tensor, Sequence[int]]]):
        self.pixels, self.work = pixels, work

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for batch, views in self.work:
            mine, room = batch.tensor_split(workers)[number].tolist(), [PICTURES // workers if len(views) > 1 else 0]
            pixels = copy.copy(self.pixels)
            pixels.data_source = {i: _decoded_once(self.pixels.data_source[i], room) for i in mine}
            for view in views:
                items = [pixels[ViewIndex(i, view)] for i in mine]
                names = [name for name in (items or [{}])[0] if name.startswith("img")]
                yield {name: default_collate([item[name] for item in items]) for name in names}


def _decoded_once(item, room):
    """A copy of a Datum that keeps its image, if that fits into `room`, [bytes left], and gives copies for transforms
    to write into."""
    once, kept = copy.copy(item), []

    def load_image(**reading):
        image = kept[0] if kept else item.load_image(**reading)
        size = 4 * image.width * image.height  # as Pillow holds RGB
        if not kept and size <= room[0]:
            kept.append(image)
            room[0] -= size
        return image.copy() if kept else image

    once.load_image = load_image
    return once
