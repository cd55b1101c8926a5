"""One version of one task, run in a process of its own, so that its peak memory is its own.

`open_runner` prepares, `first` checks, `timed` and `profiled` measure; the process keeps the runner between
calls. Tower passes are counted by hooks on CLIP's own modules, the same for every version.
"""

import contextlib
import io
import re
import time

import torch

from tests.benchmarks.memory import peak_mb, reset_peak
from tests.benchmarks.task import Runner, all_tasks, count_passes
from tests.benchmarks.world import World

MATRIX = re.compile(r"aten::_*(mm|bmm|addmm|baddbmm|matmul|linear|(mkldnn_|slow_)?conv|scaled_dot_product)")
TASKS = all_tasks()

_runner: Runner


def open_runner(world: World, task: str, version: str, threads: int) -> int:
    """Prepare; returns the images a call goes through."""
    global _runner
    torch.set_num_threads(threads)
    with quiet():
        _runner = TASKS[task].open(world, version)
    return _runner.images


def first() -> dict:
    """One counted call: passes, values to compare, peak memory in MB."""
    reset_peak()
    with quiet(), count_passes(_runner.towers) as passes:
        values = _runner.result()
    return {"passes": passes, "peak_mb": peak_mb(), "values": values}


def timed(calls: int) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of each call; CPU over all threads."""
    times = []
    with quiet():
        for _ in range(calls):
            wall, cpu = time.perf_counter(), time.process_time()
            _runner.call()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def profiled() -> float:
    """Share of one call's operator time spent in matrix products."""
    with quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _runner.call()
    operators = profiler.key_averages()
    total = sum(operator.self_cpu_time_total for operator in operators)
    return sum(operator.self_cpu_time_total for operator in operators if MATRIX.match(operator.key)) / total


def quiet():
    """Trainers log to stdout, where the benchmark's table goes."""
    return contextlib.redirect_stdout(io.StringIO())
