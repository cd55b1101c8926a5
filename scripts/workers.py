"""Jobs in a few long-lived processes under one progress bar.

A group is a list of jobs that need each other; it runs in one process, so that start-up and CLIP are paid once. Of a
table it is a cell: a data set and a seed.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from scripts.commands.registered import know
from scripts.jobs import Job
from scripts.stopping import PATIENCE, STOPPED, end_with, stoppable

GONE = "a process of the job was killed, most often for its memory: fewer --workers; the same command goes on"


class Pool(ProcessPoolExecutor):
    """Worker processes that never hear Ctrl-C, also while they start: their parent does."""

    def submit(self, *words):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*words)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def start_worker(threads: int, queue) -> None:
    """Once a worker process: its share of the cores, and the way back to the progress bar. It ends with its parent."""
    end_with(multiprocessing.parent_process().sentinel)
    import torch

    multiprocessing.set_start_method(None, force=True)  # loaders' workers start as in train.py: fast where they fork
    torch.set_num_threads(threads)
    start_worker.queue = queue


@contextlib.contextmanager
def pool(workers: int, threads: int) -> Iterator[tuple]:
    """(executor, queue to this process) of worker processes, which end with what ends this block."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    executor = Pool(workers, context, start_worker, (threads, queue))
    with stoppable():
        try:
            yield executor, queue
        except SystemExit:
            executor.shutdown(wait=False, cancel_futures=True)
            _end_workers()
            raise
        finally:
            executor.shutdown(cancel_futures=True)


def _end_workers() -> None:
    """SIGTERM; what has not ended by then, or at a second Ctrl-C, is killed."""
    workers = multiprocessing.active_children()
    deadline = time.monotonic() + PATIENCE
    try:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()


def quietly(function: Callable, *arguments):
    """A worker's job: each run keeps its own log. A process that SIGTERM ended takes no other job."""
    from dassl.utils import memory_errors

    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), memory_errors():
            return function(*arguments)
    except SystemExit as error:
        if error.code == STOPPED:
            signal.raise_signal(signal.SIGTERM)
        raise


def tell_bar(what: str, value) -> None:
    """To the progress bar: a job starts (its name) or is done."""
    start_worker.queue.put((what, value))


def run_group(jobs: list[Job], tell=tell_bar) -> str:
    """Run what is missing of one group; returns the line of the job that failed, with a traceback if it is a bug."""
    from dassl.utils import UserError

    know(job.command for job in jobs)
    for job in jobs:
        tell("start", str(job))
        try:
            quietly(run_one_job, job)
        except (UserError, OSError, SystemExit) as error:  # a module's command line ends with its one line
            return f"{job}: {' '.join(str(error).split()).removeprefix('error: ')}"
        except Exception:
            return f"{job}\n{traceback.format_exc()}"
        tell("done", "")
    return ""


def run_one_job(job: Job) -> None:
    """Run what is missing of one job: the run, and its path card."""
    from mergetune.path_card import path_card

    if not job.done:
        job.start()
    if job.card and not job.finished:
        path_card(job.folder, pairs=job.begins_from, others=job.others)


def run_groups(groups: list[list[Job]], workers: int) -> list[str]:
    """All groups in `workers` processes; returns what failed, each said at once."""
    from dassl.utils.progress import progress

    threads = max(1, (os.cpu_count() or 1) // workers)
    failures: list[str] = []
    due = [group for group in groups if not all(job.finished for job in group)]
    if not due:
        return []
    with (
        pool(workers, threads) as (executor, queue),
        progress(total=sum(map(len, due)), unit="run", smoothing=0.05, delay=0, leave=True) as bar,
    ):
        waiting = {executor.submit(run_group, group) for group in due}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    failure = future.result()
                except BrokenProcessPool:
                    failure = GONE
                if failure and failure not in failures:
                    bar.write(f"failed: {failure}", file=sys.stderr)
                    failures.append(failure)
            while not queue.empty():
                what, value = queue.get()
                bar.update(what == "done")
                if what == "start":
                    bar.set_description_str(value, refresh=not bar.delay)
    return failures
