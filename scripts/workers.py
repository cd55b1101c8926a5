"""Jobs in a few long-lived processes under one progress bar.

A group is a list of jobs of which one needs what stands before it; of a table it is a cell: a data set and a seed.
Start-up and CLIP are paid once a process.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import mergetune
from dassl.utils import UserError, memory_errors
from dassl.utils.progress import progress
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


def start_worker(threads: int) -> None:
    """Once a worker process: its share of the cores. It ends with its parent."""
    end_with(multiprocessing.parent_process().sentinel)
    import torch

    multiprocessing.set_start_method(None, force=True)  # loaders' workers start as in train.py: fast where they fork
    torch.set_num_threads(threads)


@contextlib.contextmanager
def pool(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which end with what ends this block."""
    executor = Pool(workers, multiprocessing.get_context("spawn"), start_worker, (threads,))
    with stoppable():
        try:
            yield executor
        except SystemExit:
            _end_workers()
            raise
        finally:
            executor.shutdown(cancel_futures=True)  # waits for its thread, which else meets the end of the process


def _end_workers() -> None:
    """SIGTERM; what has not ended by then, or at a second Ctrl-C, is killed."""
    workers = multiprocessing.active_children()
    try:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(PATIENCE)
    finally:
        for worker in workers:
            worker.kill()


def outcome(what: str, function: Callable, *arguments) -> tuple[Any, str]:
    """(what a worker's job gives, the line of its failure, with a traceback if it is a bug). Each run keeps its own
    log. A process that SIGTERM ended takes no other job."""
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), memory_errors():
            return function(*arguments), ""
    except (UserError, OSError, SystemExit) as error:  # a module's command line ends with its one line
        if getattr(error, "code", None) == STOPPED:
            signal.raise_signal(signal.SIGTERM)
        return None, f"{what}: {' '.join(str(error).split()).removeprefix('error: ')}"
    except Exception:
        return None, f"{what}\n{traceback.format_exc()}"


def attempt(job: Job) -> str:
    """Run what is missing of a job -> the line of a failure."""
    know([job.command])
    return outcome(str(job), run_one_job, job)[1]


def run_one_job(job: Job) -> None:
    """Run what is missing of one job: the run, and its path card."""
    if not job.done:
        job.start()
    if job.card and not job.finished:
        mergetune.path_card.path_card(job.folder, pairs=job.begins_from, others=job.others)


def run_groups(groups: list[list[Job]], workers: int) -> list[str]:
    """All groups in `workers` processes; returns what failed, each said at once. What stands behind a job in its group
    waits for it, and is left out if it fails."""
    due = [group for group in groups if not all(job.finished for job in group)]
    waiting, running, failures = iter(due), {}, []
    with (
        progress(total=sum(map(len, due)), unit="run", smoothing=0.05, delay=0, leave=True, disable=not due) as bar,
        pool(workers, max(1, (os.cpu_count() or 1) // workers)) as executor,
    ):

        def start(jobs: list[Job]) -> None:
            bar.set_description_str(str(jobs[0]), refresh=not bar.delay)  # lines come by the clock
            running[executor.submit(attempt, jobs[0])] = jobs[1:]

        def say(failure: str) -> None:
            bar.write(f"failed: {failure}", file=sys.stderr)
            failures.append(failure)

        try:
            for group in itertools.islice(waiting, workers):
                start(group)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    jobs = running.pop(future)
                    if failure := future.result():
                        say(failure)
                    bar.update(not failure)
                    if jobs := (not failure and jobs) or next(waiting, []):
                        start(jobs)
        except BrokenProcessPool:
            say(GONE)
    return failures
