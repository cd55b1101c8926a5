"""Batches counted by iterations instead of epochs, the same for every way of running (ConDU, arXiv 2503.10705).

The pictures of a training lie on one endless line: a random permutation of the data set, then another, ...
Batch k is the positions kB .. (k + 1)B - 1 of it, so a set smaller than a batch fills one all the same, and
any batch can be drawn without those before it. B pictures of a batch, N pictures of the data set.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from dassl.data import ViewIndex
from dassl.data.views import view_seed
from dassl.utils import UserError


def pass_order(count: int, seed: int, number: int) -> list[int]:
    """The permutation of `count` pictures in pass `number`; depends on nothing else than these and `seed`."""
    generator = torch.Generator().manual_seed(view_seed(seed, number, "order of pictures"))
    return torch.randperm(count, generator=generator).tolist()


class IterationSampler(Sampler):
    """A batch sampler: lists of ViewIndex(picture, pass), so augmentation depends on seed, pass and picture only.

    `start(first, batches)` says which batches the next pass through it yields. With several processes each
    yields its own share of every batch, all of one size.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, processes: int = 1):
        if count < 1 or batch < 1:
            raise UserError(f"no batches of {batch} from {count} pictures: both must be at least 1")
        self.count, self.batch, self.seed = count, batch, seed
        if batch % processes:
            raise UserError(
                f"DATALOADER.TRAIN_X.BATCH_SIZE {batch} is the batch of all processes together, "
                f"and {processes} processes cannot share it equally"
            )
        size = batch // processes
        self.share = slice(rank * size, (rank + 1) * size)
        self.first, self.batches = 0, 1
        self._order = -1, []  # (pass, its permutation), the last one drawn

    def start(self, first: int, batches: int) -> None:
        """Yield the batches first .. first + batches - 1 next."""
        self.first, self.batches = int(first), int(batches)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[ViewIndex]]:
        for number in range(self.first, self.first + self.batches):
            places = range(number * self.batch, (number + 1) * self.batch)
            yield [self._picture(place) for place in places[self.share]]

    def _picture(self, place: int) -> ViewIndex:
        number, within = divmod(place, self.count)
        if self._order[0] != number:
            self._order = number, pass_order(self.count, self.seed, number)
        return ViewIndex(self._order[1][within], number)
