"""Feature banks of a run that is only tried out: stored rounds are read, missing ones are timed on a few pictures.

Nothing is written. The rows of a missing round are those of the sample, over and over: of the right shape and
type, so that steps on them cost what real ones cost.
Letters: N images, D joint width.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.utils.data import default_collate

from dassl.data import ViewIndex

from .features import WORKERS_FROM, FeatureBank, bank_folder, feature_loader

SECONDS = 3.0  # that a sample may take, once it is a batch


@dataclass
class Rehearsal:
    """pictures: that the real run would encode; seconds: that this would take, for training and for test features.

    size: bytes of the missing rounds. more: bytes of them that are not in memory now, and would be. spent: seconds
    that the samples took. known: {(folder, round): rows}, what has been counted.
    """

    known: dict = field(default_factory=dict)
    pictures: int = 0
    seconds: dict = field(default_factory=dict)
    size: int = 0
    more: int = 0
    spent: float = 0.0
    folders: set = field(default_factory=set)

    def fill(self, bank, numbers):
        """Stand-ins for the missing rounds of a bank."""
        bank._rounds |= {n: self.known[bank.folder, n] for n in numbers if (bank.folder, n) in self.known}
        numbers = [number for number in numbers if number not in bank._rounds]
        if not numbers:
            return
        started = time.perf_counter()
        total = len(bank.pixels) * len(numbers)
        rows, picture = sample(bank, numbers[0], total)
        places = torch.arange(len(bank.pixels)) % len(next(iter(rows.values())))
        rows = {name: value[places] for name, value in rows.items()}
        size = sum(value.numel() * value.element_size() for value in rows.values())
        what = "training features" if bank.pixels.is_train else "test features"
        self.seconds[what] = self.seconds.get(what, 0.0) + picture * total
        self.pictures += total
        self.size += size * len(numbers)
        self.more += size * (len(numbers) - 1)
        self.folders.add(bank.folder)
        bank._rounds |= dict.fromkeys(numbers, rows)
        self.known |= {(bank.folder, number): rows for number in numbers}
        self.spent += time.perf_counter() - started


@contextlib.contextmanager
def rehearsed_banks(known=None):
    """Within, no bank is built -> the Rehearsal that counts what would be, but for what is known from another."""
    rehearsal = Rehearsal({} if known is None else known)
    with _filled_by(lambda bank, numbers: rehearsal.fill(bank, numbers)):
        yield rehearsal


@contextlib.contextmanager
def _filled_by(function):
    before, FeatureBank.fill = FeatureBank.fill, function
    try:
        yield
    finally:
        FeatureBank.fill = before


def sample(bank, number, total):
    """Rows of a few batches of a round, and the seconds that one picture of `total` takes: median over batches.

    Worker processes read ahead, so with them the slower of reading and encoding counts.
    """
    workers = min(bank.workers, os.cpu_count() or 1) if total >= WORKERS_FROM else 0
    order = torch.randperm(len(bank.pixels), generator=torch.Generator().manual_seed(0)).tolist()
    done, times, started = [], [], time.perf_counter()
    for start in range(0, len(order), bank.batch_size):
        begun = time.perf_counter()
        chosen = order[start : start + bank.batch_size]
        items = [bank.pixels[ViewIndex(index, number)] for index in chosen]
        images = default_collate([{k: v for k, v in item.items() if k.startswith("img")} for item in items])
        read = time.perf_counter()
        done.append(bank._encode(images))
        read, encode = read - begun, time.perf_counter() - read
        times.append((max(read / workers, encode) if workers else read + encode) / len(chosen))
        if time.perf_counter() - started > SECONDS:
            break
    rows = {name: torch.cat([part[name] for part in done]) for name in done[0]}
    return rows, median(times[1:] or times)  # the first warms up


class _Absent(Exception):
    """A bank does not hold what was asked for."""


def stored_loader(cfg, loader, backbone, autocast):
    """A test loader's features, if all of them are in the bank, else None. Builds nothing."""
    test = {"is_train": False, "batch_size": cfg.DATALOADER.TEST.BATCH_SIZE, "strict": cfg.FEATURES.STRICT}
    with contextlib.suppress(_Absent), _filled_by(_refuse):
        return feature_loader(loader, backbone, folder=bank_folder(cfg), autocast=autocast, **test)
    return None


def _refuse(bank, numbers):
    if numbers:
        raise _Absent
