"""Resident memory of this process, in MB, from Linux' /proc."""

import contextlib
import ctypes

from dassl.utils.memory import reset_peak, status_mb
from dassl.utils.memory import resident_peak_mb as peak_mb

__all__ = ["peak_mb", "reset_peak", "resident_mb"]


def resident_mb() -> float:
    """Resident memory now, after what was freed has gone back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status_mb("VmRSS")
