"""Peak memory of a run: what a GPU held, or what the process had resident. In MiB."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

from .distributed import all_reduce, world_size
from .logger import get_logger

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(cuda: bool = False) -> None:
    """Forget the process's peak so far, with `cuda` also that of the GPU. Resident memory: Linux alone can."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
    if cuda:
        torch.cuda.reset_peak_memory_stats()


def resident_peak_mb() -> float:
    """The most resident memory since `reset_peak`."""
    with contextlib.suppress(OSError, StopIteration):
        return status_mb("VmHWM")
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def status_mb(name: str, file: Path = _STATUS) -> float:
    """A line of Linux' /proc/self/status, such as VmRSS, or of another such file. OSError or StopIteration where there
    is none."""
    return next(int(line.split()[1]) / 2**10 for line in file.read_text().splitlines() if line.startswith(name))


def available_mb(device: torch.device) -> float:
    """Memory that is free for this process, with what it has already; infinite where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    with contextlib.suppress(OSError, StopIteration):
        return status_mb("MemAvailable", Path("/proc/meminfo")) + status_mb("VmRSS")
    return float("inf")


def peak_mb(device: torch.device) -> float:
    """Peak since `reset_peak`: of tensors on a GPU, of the process on a CPU; on mps what its driver holds by now."""
    if device.type == "mps":
        return round(torch.mps.driver_allocated_memory() / 2**20, 1)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_peak_mb()
    return round(peak, 1)


def report_peak(device: torch.device) -> float:
    """Log the peak of this run -> `peak_mb`; of several processes the largest. All of them call it."""
    cuda = device.type == "cuda"
    reserved = torch.cuda.max_memory_reserved(device) / 2**20 if cuda else 0.0
    peaks = all_reduce(torch.tensor([peak_mb(device), reserved], dtype=torch.float64), "max").tolist()
    where = "process" if device.type == "cpu" else device.type
    where = f"cuda:{torch.cuda.current_device()}; reserved {peaks[1]:,.0f} MB" if cuda else where
    among = f"; the largest of {world_size()} processes" if world_size() > 1 else ""
    get_logger().info(f"Peak memory: {peaks[0]:,.0f} MB ({where}{among})")
    return peaks[0]
