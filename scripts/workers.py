"""Steps in a few long-lived processes under one progress bar.

A cell is a list of steps that need each other; it runs in one process, so that start-up and CLIP are paid once.
"""

import contextlib
import importlib
import multiprocessing
import os
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from scripts.commands import COMMANDS
from scripts.jobs import Step
from scripts.run import module_argv, train_argv


def start_worker(threads: int, queue) -> None:
    """Once a worker process: its share of the cores, and the way back to the progress bar."""
    import torch

    torch.set_num_threads(threads)
    start_worker.queue = queue


def tell_bar(what: str, text: str) -> None:
    """To the progress bar: a step starts, or is done."""
    start_worker.queue.put((what, text))


def run_cell(cell: list[Step], tell=tell_bar) -> str:
    """Run what is missing of one cell; returns the traceback's text if a step failed."""
    from dassl.utils import UserError

    for step in cell:
        tell("start", str(step))
        try:
            with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):  # each run keeps its own log
                run_step(step)
        except (UserError, SystemExit) as error:  # a module's command line ends with its one line
            return f"{step}: {str(error).removeprefix('error: ')}"
        except Exception:
            return f"{step}\n{traceback.format_exc()}"
        tell("done", "")
    return ""


def run_step(step: Step) -> None:
    """Run what is missing of one step: the run, and its path card."""
    import train
    from mergetune.path_card import path_card

    command = COMMANDS[step.command]
    words = step.command, dict(step.arguments), list(step.pairs)
    if not (step.folder / command.marker).is_file():
        if command.module:
            importlib.import_module(command.module).main(module_argv(*words))
        else:
            train.main(train_argv(*words))
    if step.card and not step.finished:
        path_card(step.folder)


def run_cells(cells: list[list[Step]], workers: int) -> list[str]:
    """All cells in `workers` processes; returns what failed."""
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        bar = tqdm(total=sum(map(len, cells)), unit="run", smoothing=0.05, dynamic_ncols=True)
        threads = max(1, (os.cpu_count() or 1) // workers)
        with ProcessPoolExecutor(workers, context, start_worker, (threads, queue)) as pool:
            waiting = {pool.submit(run_cell, cell) for cell in cells}
            failures = []
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                failures += [future.result() for future in done if future.result()]
                while not queue.empty():
                    kind, text = queue.get()
                    bar.update(kind == "done")
                    if text:
                        bar.set_description_str(text)
        bar.close()
    return failures
