"""A row of the table, and what every check is told; seconds and memory of a call on any device."""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from dassl.utils.memory import peak_mb, reset_peak

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """device: what is checked, against the CPU. folder: for what the checks write. quick: small models, few steps.
    trainers: those that step; none: every one."""

    device: torch.device
    folder: Path
    quick: bool = False
    trainers: tuple[str, ...] = ()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Row:
    """fault: why it failed; empty: it is as it should be. apart: the difference to the CPU, relative."""

    check: str
    setting: str
    seconds: float | None = None
    memory: float | None = None
    apart: float | None = None
    fault: str = ""

    def cells(self) -> list[str]:
        """check, setting, seconds, memory, difference to CPU, ok; a bar would end a cell."""
        seconds = "" if self.seconds is None else f"{self.seconds:.3g}"
        memory = "" if self.memory is None else f"{self.memory:,.0f}"
        apart = "" if self.apart is None else f"{self.apart:.1e}"
        ok = f"no: {self.fault}" if self.fault else "yes"
        return [" ".join(cell.replace("|", "/").split()) for cell in
                (self.check, self.setting, seconds, memory, apart, ok)]  # fmt: skip


def too_far(apart: float, allowed: float) -> str:
    """A row's fault; NaN is one."""
    return "" if apart <= allowed else f"differs by {apart:.1e}, allowed {allowed:g}"


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs| in the Euclidean norm; infinite where one of ours is not finite."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return math.inf
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def one_line(error: BaseException) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Convolutions in fp32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Trainers log to stdout, where the table goes."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, to the end of what it has started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cost(call: Callable[[], object], place: Place, calls: int = 5) -> tuple[float, float]:
    """(median seconds, peak memory in MB) of a call that has been made before."""
    calls = 1 if place.quick else calls
    if place.cuda:
        torch.cuda.empty_cache()
    reset_peak(place.cuda)
    return median(clock(call, place.device) for _ in range(calls)), peak_mb(place.device)
