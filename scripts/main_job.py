"""The main job: every data set and seed through a method pair, then the table and the path figures.

    bash train.sh                                   the built-in benchmark
    bash train.sh --data DIR caltech101 1 2 3       public data and OpenAI weights

A cell is one data set and seed: all its commands in one process, so that start-up and CLIP are paid once.
Cells run in a few long-lived workers. What is finished is skipped; what was killed continues.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from scripts.commands import COMMANDS  # noqa: E402
from scripts.run import folder, run_folder, train_argv  # noqa: E402

Step = tuple[str, dict]  # a command's name, and its arguments beyond DATASET and SEED

# Each preset of stage 2, as arguments of its scripts.
LMC_PRESETS = {
    "released": {"CLIP_WEIGHT": "10.0", "LOSS_TYPE": "cosine", "W_LMC": "1.0", "CFG": "vit_b16_ep100_ctxv1"},
    "paper": {"CLIP_WEIGHT": "8.0", "LOSS_TYPE": "l2sq", "W_LMC": "0.5", "CFG": "paper"},
    "continued": {"CLIP_WEIGHT": "0.0", "LOSS_TYPE": "cosine", "W_LMC": "0.0", "CFG": "continued"},
}


def _steps(train: str, test: str, presets: dict) -> list[Step]:
    """Training and both tests, for each preset."""
    return [(name, arguments) for arguments in presets for name in (train, test.format("base"), test.format("new"))]


# The commands of a cell, by method pair.
PAIRS: dict[str, list[Step]] = {
    "CoOp": [
        ("zsclip/base2base_test", {}),
        ("zsclip/base2new_test", {}),
        *_steps("coop/base2new_train", "coop/base2{}_test", [{}]),
        ("coop_average/base2base_test", {}),
        ("coop_average/base2new_test", {}),
        *_steps(
            "coop_LMC/base2new_train_coop",
            "coop_LMC/base2{}_test_coop",
            [{"COOP_LMC": "True"} | values for values in LMC_PRESETS.values()],
        ),
    ],
}
DRAWN = ("coop_LMC/base2new_train_coop",)  # training commands whose path is drawn


def cell_steps(pair: str, dataset: str, seed: int) -> list[Step]:
    """The commands of one cell with all their arguments."""
    cell = {"DATASET": dataset, "SEED": str(seed)}
    return [(name, COMMANDS[name].defaults | cell | values) for name, values in PAIRS[pair]]


def finished(name: str, arguments: dict) -> bool:
    """Has the command left its results, and its path card where one belongs to it?"""
    out = run_folder(COMMANDS[name], arguments)
    return (out / "results.json").is_file() and (name not in DRAWN or (out / "path.json").is_file())


def start_worker(threads: int, queue) -> None:
    """Once a worker process: its share of the cores, and the way back to the progress bar."""
    import torch

    torch.set_num_threads(threads)
    start_worker.queue = queue


def run_cell(pair: str, dataset: str, seed: int, pairs: list[str]) -> str:
    """Run what is missing of one cell; returns the traceback's text if a command failed."""
    import train
    from dassl.utils import UserError
    from mergetune.path_card import path_card

    for name, arguments in cell_steps(pair, dataset, seed):
        start_worker.queue.put(("start", f"{dataset} seed {seed}: {name}"))
        try:
            out = run_folder(COMMANDS[name], arguments)
            with (
                open(os.devnull, "w") as quiet,
                contextlib.redirect_stdout(quiet),
            ):  # each run keeps its own log
                if not (out / "results.json").is_file():
                    train.main(train_argv(name, arguments, pairs))
                if not finished(name, arguments):
                    path_card(out)
        except UserError as error:
            return f"{dataset} seed {seed}: {name}: error: {error}"
        except Exception:
            return f"{dataset} seed {seed}: {name}\n{traceback.format_exc()}"
        start_worker.queue.put(("done", ""))
    return ""


def run_cells(pair: str, cells: list[tuple[str, int]], workers: int, pairs: list[str]) -> list[str]:
    """All cells in `workers` processes under one progress bar; returns what failed."""
    from tqdm import tqdm

    steps = [step for cell in cells for step in cell_steps(pair, *cell)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue = manager.Queue()
        bar = tqdm(total=len(steps), unit="run", smoothing=0.05, dynamic_ncols=True)
        threads = max(1, (os.cpu_count() or 1) // workers)
        with ProcessPoolExecutor(workers, context, start_worker, (threads, queue)) as pool:
            waiting = {pool.submit(run_cell, pair, *cell, pairs) for cell in cells}
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


def report(pair_names: list[str]) -> None:
    """Tables and figures of everything below OUTPUT."""
    from mergetune.report import main as report_main

    output = Path(folder("OUTPUT", "output"))
    report_main([str(output), "--out", str(output), "--figures"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="CoOp", help=f"method pair: {', '.join(PAIRS)}")
    parser.add_argument("--all", action="store_true", help="every method pair")
    parser.add_argument("--data", metavar="DIR", help="folder of public data sets; then name DATASET [SEED...]")
    parser.add_argument("--workers", type=int, default=0, help="processes; default 2 on the built-in benchmark, else 1")
    parser.add_argument("words", nargs="*", metavar="DATASET [SEED...]", help="default: the toy data sets, seeds 1 2 3")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every run")
    args = parser.parse_intermixed_args()
    if args.data:
        os.environ["DATA"] = os.path.abspath(args.data)
    from dassl.utils import UserError, check_availability

    os.chdir(ROOT)
    names = list(PAIRS) if args.all else [args.trainer]
    try:
        check_availability(names[0], list(PAIRS))
        datasets, seeds = grid(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    started, failures = time.time(), []
    for name in names:
        cells = [(dataset, seed) for seed in seeds for dataset in datasets]
        failures += run_cells(name, cells, args.workers or (1 if args.data else 2), args.set)
    report(names)
    print(f"{time.time() - started:.0f} s for {len(names) * len(datasets) * len(seeds)} cells")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def grid(args) -> tuple[list[str], list[int]]:
    """Data sets and seeds of a command line, each known and each with its data."""
    from dassl.utils import UserError, check_availability
    from datasets.toy.world import WORLD

    known = sorted(path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml"))
    names = [word for word in args.words if not word.isdigit()]
    seeds = [int(word) for word in args.words if word.isdigit()] or [1, 2, 3]
    for name in names:
        check_availability(name, known)
    if args.data and not names:
        raise UserError(f"--data DIR needs a data set's name, one of {', '.join(known)}")
    return names or [toy.folder for toy in WORLD.values() if toy.base_to_new], seeds


if __name__ == "__main__":
    sys.exit(main())
