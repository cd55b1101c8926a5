"""A loader's batches, divided between the processes of one run (dassl.utils.distributed).

Training: BATCH_SIZE is the batch of all processes together. Every process draws the order of the whole, from the
same random states, and reads its part of each batch.

Evaluation: a process reads whole batches, a contiguous share of all. A batch is then what it is in one process, so
are its logits, to the last bit, and shares behind each other by rank are in the data set's order.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from dassl.utils.distributed import shard, world_size

from .data_manager import Loader


class ShardedBatches(Sampler):
    """Wraps a batch sampler: this process's part of each of its batches, in its order and with its draws.

    A batch of fewer items than processes leaves some without a part: these get a copy of its first item, with
    the share 0. `shares` queues the share (0 to 1) of each batch that was yielded.
    """

    def __init__(self, batches: Any):
        self.batches = batches
        self.shares = deque()

    @property
    def sampler(self) -> Sampler:
        return self.batches.sampler

    def __iter__(self) -> Iterator[list[int]]:
        self.shares.clear()  # of a pass that was broken off
        for batch in self.batches:
            mine = batch[shard(len(batch))]
            self.shares.append(len(mine) / len(batch))
            yield mine or batch[:1]

    def __len__(self):
        return len(self.batches)


def sharded_loader(loader: DataLoader | None) -> DataLoader | None:
    """A loader of this process's part of the batches of `loader`; itself in one process.

    So is a loader with a batch sampler of its own: that one divides its batches itself, into equal parts.
    """
    if loader is None or world_size() == 1 or loader.batch_size is None:
        return loader
    return loader_like(loader, ShardedBatches(loader.batch_sampler), loader.persistent_workers)


def share_of_batches(loader: DataLoader, together: int = 1) -> DataLoader | None:
    """A loader of the whole batches that fall to this process, maybe none -> loader, None if it cannot be divided.

    It can if its batches are those of an unshuffled data set: any other order may differ between processes.
    together: batches behind each other of which none is parted from the others.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if type(sampler) is not BatchSampler or type(sampler.sampler) is not SequentialSampler:
        return None
    batches = list(sampler)
    groups = [batches[first : first + together] for first in range(0, len(batches), together)]
    return loader_like(loader, [batch for group in groups[shard(len(groups))] for batch in group])


def loader_like(
    loader: DataLoader, batches: Iterable | None = None, persistent: bool = False, dataset: Dataset | None = None
) -> DataLoader:
    """A loader of the same data set in the same way, whose batches are the lists of indices `batches`; of another data
    set in the same order, where that is given."""
    order: dict[str, Any] = {"batch_sampler": batches}
    if batches is None:
        order = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    return Loader(
        loader.dataset if dataset is None else dataset,
        **order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        persistent_workers=persistent,
    )


def next_share(loader: object) -> float | None:
    """Share (0 to 1) that this process has in the batch that `loader` gave last; None if it keeps no record."""
    shares = getattr(getattr(loader, "batch_sampler", None), "shares", None)
    return shares.popleft() if shares else None
