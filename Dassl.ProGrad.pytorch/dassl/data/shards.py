"""A training loader's batches, divided between the processes of one run (dassl.utils.distributed).

BATCH_SIZE is the batch of all processes together. Every process draws the order of the whole, from the same
random states, and reads its part of each batch.
"""

from collections import deque

from torch.utils.data import DataLoader, Sampler

from dassl.utils.distributed import part, world_size


class ShardedBatches(Sampler):
    """Wraps a batch sampler: this process's part of each of its batches, in its order and with its draws.

    A batch of fewer items than processes leaves some without a part: these get a copy of its first item, with
    the share 0. `shares` queues the share (0 to 1) of each batch that was yielded.
    """

    def __init__(self, batches):
        self.batches = batches
        self.shares = deque()

    @property
    def sampler(self):
        return self.batches.sampler

    def __iter__(self):
        self.shares.clear()  # of a pass that was broken off
        for batch in self.batches:
            mine = batch[part(len(batch))]
            self.shares.append(len(mine) / len(batch))
            yield mine or batch[:1]

    def __len__(self):
        return len(self.batches)


def sharded_loader(loader):
    """A loader of this process's part of the batches of `loader`; itself in one process.

    So is a loader with a batch sampler of its own: that one divides its batches itself, into equal parts.
    """
    if loader is None or world_size() == 1 or loader.batch_size is None:
        return loader
    return DataLoader(
        loader.dataset,
        batch_sampler=ShardedBatches(loader.batch_sampler),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
    )


def next_share(loader):
    """Share (0 to 1) that this process has in the batch that `loader` gave last; None if it keeps no record."""
    shares = getattr(getattr(loader, "batch_sampler", None), "shares", None)
    return shares.popleft() if shares else None
