"""The parts of the toy stream, each run in one of two long-lived processes, and the pool that runs them."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache

from dassl.utils import UserError
from dassl.utils.progress import progress
from scripts.condu.sessions import Run, train_stream
from scripts.workers import GONE, quietly, tell_bar

WORKERS = 2


def together(workers: tuple, what: str, *jobs: tuple) -> list:
    """Run (function, *arguments) at the same time under one bar, and say how long it took -> their results.

    workers: what `scripts.workers.pool` gives. Each failure is said when it happens; SystemExit after all.
    """
    executor, queue = workers
    print(f"{what} ...", flush=True)
    started = time.time()
    futures = [executor.submit(_job, number, *job) for number, job in enumerate(jobs)]
    waiting, parts = set(futures), [0.0] * len(jobs)
    form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with progress(what=what, total=len(jobs), bar_format=form) as bar:
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                _say_failure(what, future)
            while not queue.empty():
                number, part = queue.get()[1]
                parts[number] = max(parts[number], part)
            bar.update(sum(parts) - bar.n)
    if any(future.exception() for future in futures):
        sys.exit(1)
    print(f"{what}: {time.time() - started:.0f} s", flush=True)
    return [future.result() for future in futures]


def _say_failure(what: str, future: Future) -> None:
    """One line for bad input and for a lost process, a traceback for a bug."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        error = UserError(GONE)
    if isinstance(error, UserError | OSError | SystemExit):
        print(f"error: {what}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    elif error:
        traceback.print_exception(error)


def _job(number: int, function: Callable, *arguments):
    """In a worker."""
    from dassl.utils.progress import report_bars

    report_bars(lambda part: tell_bar("part", (number, part)))
    return quietly(function, *arguments)


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
