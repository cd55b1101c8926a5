"""How the processes of a job end: with what started them, after the step under way, and after a line."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait as wait_for

from scripts.commands.command import ROOT

PATIENCE = 30.0  # seconds for the step under way, once a process is to end: what Slurm and torchrun give
STOPPED = 128 + signal.SIGTERM  # exit status
WORKFLOW = "WORKFLOW_PID"  # variable: the process that a job of a workflow ends with


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Around a job: SIGTERM and Ctrl-C end it with SystemExit(143) and SystemExit(130), after a line that says how to
    go on."""
    numbers = []

    def stop(number, frame):
        if not numbers:
            os.write(2, b"stopping; the same command goes on where this one ends\n")
        numbers.append(number)
        raise SystemExit(128 + numbers[0])

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def call(words: Sequence[str]) -> int:
    """Exit status of Python with these words, run in the clone. It ends with this process, and by SIGTERM or Ctrl-C
    before it."""
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, preexec_fn=end_with_parent)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while child.returncode is None:
            with contextlib.suppress(KeyboardInterrupt):
                child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 128 - child.returncode if child.returncode < 0 else child.returncode


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """In a process that starts: Linux sends it the signal when its parent has ended, however that was."""
    with contextlib.suppress(AttributeError, OSError):  # another system
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def end_with(process: int) -> None:
    """SIGTERM for this process when the one behind a sentinel or pidfd ends; it has PATIENCE for the step under way."""

    def watch() -> None:
        wait_for([process])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


def end_with_workflow() -> None:
    """A job of a workflow on this machine ends with it."""
    if pid := os.environ.get(WORKFLOW):
        try:
            end_with(os.pidfd_open(int(pid)))
        except ProcessLookupError:  # it has ended before
            sys.exit(STOPPED)
