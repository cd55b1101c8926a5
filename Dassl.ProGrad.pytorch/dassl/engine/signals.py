"""SIGTERM, which batch systems send some time before they kill (Slurm and torchrun: 30 seconds).

An epoch of training ends after the step under way and is saved there; several processes end after the same step, a few
steps later (`StopFlag`). What follows an epoch (validation, checkpoints) is ended and saved. Everything else ends at
once: it is done again.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch

from dassl.utils.distributed import all_reduce, world_size

PATIENCE = 5.0  # seconds: who sends the signal again after them does not want to wait; torchrun repeats it sooner
_asked: list[float] = []  # time of the signal that is yet to be heard
_listening: list[bool] = []  # not empty in `defer_sigterm`


@contextlib.contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM ends the block with SystemExit(143), as Ctrl-C does: files closed, lock released, resume.pt left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _received)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        _asked.clear()


def _received(signum, frame):
    _asked.append(time.monotonic())  # what is raised within a fork or a finaliser ends nothing: the next step does
    if not _listening or _asked[-1] - _asked[0] > PATIENCE:
        raise SystemExit(128 + signum)


@contextlib.contextmanager
def defer_sigterm(before_stop: Callable[[], None] | None = None) -> Iterator[None]:
    """In the block SIGTERM waits for `should_stop`, and for the end of the block. All processes come through it."""
    _listening.append(True)
    try:
        yield
    finally:
        _listening.pop()
    if should_stop():
        if before_stop is not None:
            before_stop()
        stop()


def should_stop() -> bool:
    """Has any process of this run got SIGTERM? All ask after the same steps."""
    if world_size() == 1:
        return bool(_asked)
    return bool(all_reduce(torch.tensor([float(len(_asked))])).item())


class StopFlag:
    """`should_stop` of one epoch. Several processes ask each other at the latest every `most` steps, sooner where at
    the slowest one's pace these take more than PATIENCE: each time all agree on the steps until the next."""

    def __init__(self, most: int) -> None:
        self._most, self._steps, self._next, self._asked = most, 0, 1, 0  # steps: done, when to ask, when it was asked
        self._begun = self._since = time.monotonic()

    def heard(self, last: bool = False) -> bool:
        """After a step, in all processes. last: of the epoch, after which all ask."""
        self._steps += 1
        if world_size() == 1:
            return should_stop()
        if self._steps < self._next and not last:
            return False
        now = time.monotonic()
        pace = max((now - self._begun) / self._steps, (now - self._since) / (self._steps - self._asked), 1e-6)
        told, pace = all_reduce(torch.tensor([float(len(_asked)), pace]), "max").tolist()
        self._next = self._steps + max(1, min(self._most, int(PATIENCE / pace)))
        self._asked, self._since = self._steps, now
        return told > 0


def stop() -> NoReturn:
    """End as the signal asks: SystemExit(143)."""
    raise SystemExit(128 + signal.SIGTERM)
