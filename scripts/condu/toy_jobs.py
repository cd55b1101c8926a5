"""The parts of the toy stream, each run in one of two long-lived processes, and the pool that runs them."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

from scripts.condu.sessions import Run, train_stream

WORKERS = 2


def _start_worker() -> None:
    """Once a process: one thread, since the processes share the cores."""
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def pool():
    """A pool of WORKERS processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context, _start_worker) as executor:
        yield executor


def together(executor, what: str, *jobs: tuple) -> list:
    """Run (function, *arguments) at the same time, quietly, and say how long it took -> their results."""
    print(f"{what} ...", flush=True)
    started = time.time()
    futures = [executor.submit(_quiet, *job) for job in jobs]
    try:
        found = [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
    print(f"{what}: {time.time() - started:.0f} s", flush=True)
    return found


def _quiet(function: Callable, *arguments):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # each run keeps its own log
        return function(*arguments)


@lru_cache(maxsize=1)
def bench_of(run: Run):
    """The process's evaluator: test pictures and the pretrained model's features of them are kept between jobs."""
    from scripts.condu.bench import Bench

    return Bench(run)


def warm_up() -> None:
    """Import what the other jobs will."""
    import scripts.condu.bench  # noqa: F401


def draw(run: Run) -> list[str]:
    """Write the pictures if they are not there -> the task names."""
    return bench_of(run).names


def learn(run: Run) -> None:
    """All sessions; the experts are kept."""
    train_stream(run)


def learn_in_sequence(run: Run, names: Sequence[str]) -> None:
    """The sequential baseline."""
    from scripts.condu.baselines import train_sequential

    train_sequential(run, names)


def evaluate(run: Run, agnostic: bool, command: str) -> dict:
    """(vote, label space) -> matrix."""
    from scripts.condu.evaluate import evaluate_stream

    out = run.out / ("agnostic" if agnostic else "mtil")
    return evaluate_stream(run, str(out), agnostic=agnostic, command=command, bench=bench_of(run))


def baselines(run: Run, command: str) -> dict:
    """Title -> matrix."""
    from scripts.condu.baselines import evaluate_baselines

    return evaluate_baselines(bench_of(run), command)


def orders(run: Run, numbered: dict, command: str) -> dict:
    """{vote: {number of the order: matrix}}."""
    from scripts.condu.any_order import evaluate_orders

    return evaluate_orders(bench_of(run), numbered, command)


def ablations(run: Run, command: str) -> dict:
    """Title -> matrix."""
    from scripts.condu.ablations import evaluate_ablations

    return evaluate_ablations(bench_of(run), command)


def stages(run: Run) -> list[dict]:
    """Seconds and bytes."""
    from scripts.condu.stages import stages as measure

    return measure(bench_of(run))


def figures(run: Run) -> list[str]:
    """The files drawn."""
    from scripts.condu.figures import draw_figures

    return draw_figures(bench_of(run))
