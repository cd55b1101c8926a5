"""Resident memory of this process, in MB, from Linux' /proc."""

import contextlib
import ctypes
from pathlib import Path


def reset_peak() -> None:
    """Forget the peak so far; Linux alone knows how, elsewhere it stays included."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """High-water mark of resident memory since `reset_peak`."""
    return _field("VmHWM")


def resident_mb() -> float:
    """Resident memory now, after what was freed has gone back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _field("VmRSS")


def _field(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
