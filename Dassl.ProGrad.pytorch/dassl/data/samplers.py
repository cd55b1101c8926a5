"""Samplers by name: torch's two, and Dassl's three that balance domains or classes; and one that counts iterations.

The three draw from Python's `random` (RandomClassSampler from numpy too) and run one pass in their
constructor to learn their length, as Dassl's do, so that a seeded run visits the same images. That length is
an estimate: a later pass may stop a round earlier or later.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode as CN

from dassl.utils import UserError, check_availability

from .fewshot import group_indices
from .views import ViewIndex, view_seed


class _RoundSampler(Sampler):
    """Base of the three: `_draw()` gives the indices of one pass."""

    def __iter__(self):
        return iter(self._draw())

    def __len__(self):
        return self.length


class RandomDomainSampler(_RoundSampler):
    """Each batch: n_domain domains at random (all if n_domain is None or < 1), an equal share of each.

    Until one of them cannot fill its share again.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int | None = None):
        self.data_source = data_source
        self.domain_dict = group_indices([item.domain for item in data_source])
        self.domains = list(self.domain_dict)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains):
            raise UserError(f"{self.n_domain} domains a batch asked for, but there are {len(self.domains)}")
        if batch_size < self.n_domain or batch_size % self.n_domain:
            raise UserError(f"batch size {batch_size} is no multiple of the {self.n_domain} domains in a batch")
        self.batch_size = batch_size
        self.n_img_per_domain = batch_size // self.n_domain
        smallest = min(len(indices) for indices in self.domain_dict.values())
        if smallest < self.n_img_per_domain:
            raise UserError(
                f"the smallest domain has {smallest} images; its share of a batch is {self.n_img_per_domain}"
            )
        self.length = len(self._draw())

    def _choose(self):
        return random.sample(self.domains, self.n_domain)

    def _draw(self):
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        share, picked, short = self.n_img_per_domain, [], False
        while not short:
            for domain in self._choose():
                chosen = random.sample(left[domain], share)
                taken = set(chosen)
                left[domain] = [index for index in left[domain] if index not in taken]
                picked += chosen
                short = short or len(left[domain]) < share
        return picked


class SeqDomainSampler(RandomDomainSampler):
    """Each batch: an equal share of every domain, domains in sorted order."""

    def _choose(self):
        return sorted(self.domains)


class RandomClassSampler(_RoundSampler):
    """Each batch: batch_size // n_ins classes at random, n_ins images of each.

    A class of fewer than n_ins images is drawn with replacement; what is left over of a class is not used.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int):
        if batch_size < n_ins:
            raise UserError(f"batch size {batch_size} is smaller than the {n_ins} images of a class in a batch (N_INS)")
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = group_indices([item.label for item in data_source])
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise UserError(f"{self.ncls_per_batch} classes a batch asked for, but there are {len(self.labels)}")
        self.length = len(self._draw())

    def _draw(self):
        groups = {label: self._groups(indices) for label, indices in self.index_dic.items()}
        labels, picked = list(self.labels), []
        while len(labels) >= self.ncls_per_batch:
            for label in random.sample(labels, self.ncls_per_batch):
                picked += groups[label].pop(0)
                if not groups[label]:
                    labels.remove(label)
        return picked

    def _groups(self, indices):
        """One class's indices, shuffled, in groups of n_ins; the remainder is dropped."""
        n = self.n_ins
        if len(indices) < n:
            indices = np.random.choice(indices, size=n, replace=True).tolist()
        indices = list(indices)
        random.shuffle(indices)
        return [indices[i : i + n] for i in range(0, len(indices) - n + 1, n)]


# name -> (list of Datum, batch size, domains a batch, images of a class in a batch) -> sampler
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "RandomDomainSampler": lambda items, size, n_domain, n_ins: RandomDomainSampler(items, size, n_domain),
    "SeqDomainSampler": lambda items, size, *_: SeqDomainSampler(items, size),
    "RandomSampler": lambda items, *_: RandomSampler(items),
    "SequentialSampler": lambda items, *_: SequentialSampler(items),
    "RandomClassSampler": lambda items, size, n_domain, n_ins: RandomClassSampler(items, size, n_ins),
}


def build_sampler(
    sampler_type: str,
    cfg: CN | None = None,
    data_source: Sequence | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """Sampler by name over a list of Datum. Unknown name: UserError with the nearest one."""
    check_availability(sampler_type, SAMPLERS, "A sampler")
    return SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins)


class IterationSampler(Sampler):
    """Batches counted by iterations instead of epochs, the same for every way of running: lists of ViewIndex.

    The images of a training lie on one endless line: a random permutation of the dataset, then another, ... Batch k
    is the positions k * batch .. (k + 1) * batch - 1 of it, so a set smaller than a batch fills one all the same, and
    any batch can be drawn without those before it. An image's view is the number of the permutation.

    `start(first, batches)` says which batches the next pass through it yields. With several processes each
    yields its own share of every batch, all of one size.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, processes: int = 1):
        if count < 1 or batch < 1:
            raise UserError(f"no batches of {batch} from {count} images: both must be at least 1")
        self.count, self.batch, self.seed = count, batch, seed
        if batch % processes:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE {batch} is the batch of all processes together, "
                f"and {processes} processes cannot share it equally"
            )
        size = batch // processes
        self.share = slice(rank * size, (rank + 1) * size)
        self.first, self.batches = 0, 1
        self._order = -1, []  # (number of a permutation, the permutation), the last one drawn

    def start(self, first: int, batches: int) -> None:
        """Yield the batches first .. first + batches - 1 next."""
        self.first, self.batches = int(first), int(batches)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[ViewIndex]]:
        for number in range(self.first, self.first + self.batches):
            positions = range(number * self.batch, (number + 1) * self.batch)
            yield [self._image(position) for position in positions[self.share]]

    def _image(self, position: int) -> ViewIndex:
        number, within = divmod(position, self.count)
        if self._order[0] != number:
            seed = view_seed(self.seed, number, "order of pictures")  # these words give the seed: they stay
            generator = torch.Generator().manual_seed(seed)
            self._order = number, torch.randperm(self.count, generator=generator).tolist()
        return ViewIndex(self._order[1][within], number)
