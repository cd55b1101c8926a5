"""One bar with an ETA for all work that may take long, on standard error."""

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

SHORT = 10.0  # seconds of work that need no bar
EVERY = 30.0  # seconds between the lines that stand for a bar where standard error is no terminal
_shown: weakref.WeakSet = weakref.WeakSet()  # bars on the terminal
_report: Any = None  # who is told instead, in a process that works for another one


class _Lines:
    """Standard error, for a bar that no terminal shows: whole lines in the place of one that is written over."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class _Reported(tqdm):
    """A bar that is told, not shown: `_report` gets the part that is done, 0 to 1, of the outermost one."""

    open_bars: list["_Reported"] = []

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.open_bars.append(self)

    def display(self, *args, **more) -> None:
        done = 0.0
        for bar in reversed(self.open_bars):
            done = (bar.n + done) / bar.total if bar.total else 0.0
        _report(min(1.0, done))

    def close(self) -> None:
        if self in self.open_bars:
            self.open_bars.remove(self)
        self.disable = True  # nothing to clear


def progress(items: Iterable | None = None, what: str = "", **more) -> tqdm:
    """A tqdm bar over `items`, or, with `total`, one that is updated by hand; it appears after SHORT seconds of work.

    Where standard error is no terminal, it is a line at most every EVERY seconds. Of several processes under torchrun
    the first one shows it. more: what tqdm takes.
    """
    usual = {"desc": what or None, "delay": SHORT, "leave": False, "dynamic_ncols": True}
    usual |= {"disable": os.environ.get("RANK", "0") != "0"} | more
    if _report:
        return _Reported(items, **usual | {"delay": 0.0, "mininterval": 1.0})
    if not sys.stderr.isatty():
        lines = {"file": _Lines(), "delay": EVERY, "mininterval": EVERY, "maxinterval": EVERY, "dynamic_ncols": False}
        return tqdm(items, **usual | lines)
    bar = tqdm(items, **usual)
    _shown.add(bar)
    return bar


def report_bars(report: Callable[[float], None]) -> None:
    """From now on no bar of this process is shown: it works for another one, which `report` tells."""
    global _report
    _report = report
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, left behind if the process is killed


@contextlib.contextmanager
def bars_aside() -> Iterator[None]:
    """In the block the terminal shows no bar, so that lines can be written."""
    shown = [bar for bar in _shown if not bar.disable and time.time() > bar.start_t + bar.delay]
    for bar in shown:
        bar.clear()
    yield
    for bar in shown:
        bar.refresh()
