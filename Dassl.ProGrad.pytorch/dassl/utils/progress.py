"""One bar with an ETA for all work that may take long, on standard error."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SHORT = 10.0  # seconds of work that need no bar
EVERY = 30.0  # seconds between the lines that stand for a bar where standard error is no terminal
tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, left behind if the process is killed


class _Lines:
    """Standard error, for a bar that no terminal shows: whole lines in the place of one that is written over."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable | None = None, what: str = "", **more: Any) -> tqdm:
    """A tqdm bar over `items`, or, with `total`, one that is updated by hand; it appears after SHORT seconds of work.

    Where standard error is no terminal, it is a line at most every EVERY seconds. Of several processes under torchrun
    the first one shows it, of a pool's none. more: what tqdm takes.
    """
    usual: dict = {"desc": what or None, "delay": SHORT, "leave": False, "dynamic_ncols": True}
    works_for_another = os.environ.get("RANK", "0") != "0" or multiprocessing.parent_process() is not None
    usual |= {"disable": works_for_another} | more
    if not sys.stderr.isatty():
        usual |= {"file": _Lines(), "delay": EVERY, "mininterval": EVERY, "maxinterval": EVERY, "dynamic_ncols": False}
    return tqdm(items, **usual)
