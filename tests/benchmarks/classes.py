"""Memory and time of a CoOp_LMC step with 1,000 classes: all texts at once, in chunks, and with blocks run again.

    python tests/benchmarks/classes.py

The text tower of a random ViT-B/16, batch 32, image features from the bank, 2 threads, fp32: about 12 minutes on two
quiet cores, and 8 GiB for the whole pass; `--model small` is a matter of seconds. Each version is a process of its own.
Fails where loss or gradient of a version differ from the whole pass by more than 1e-5.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.step import LIMIT, PATH, difference, seconds  # noqa: E402

FULL = {"model": "text_b16", "classes": 1000, "chunk": 100}
QUICK = {"model": "small", "classes": 60, "chunk": 10}
BATCH = 32
# version: chunks or not, blocks run again or not, and how many times smaller the process's peak is in the full setting
VERSIONS = {
    "whole": (False, False, None),
    "chunks": (True, False, 2.5),
    "chunks, blocks": (True, True, 2.6),
    "blocks": (False, True, 1.9),
}
COLUMNS = "{:18}{:>12}{:>12}{:>12}{:>10}{:>10}   {}"

_runner = None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=(FULL["model"], QUICK["model"]), default=FULL["model"])
    add("--classes", type=int, help=f"default: {FULL['classes']}, of the small model {QUICK['classes']}")
    add("--chunk", type=int, help=f"classes at once; default: {FULL['chunk']}, of the small model {QUICK['chunk']}")
    add("--steps", type=int, default=3, help="timed rounds")
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / "classes.json")
    args = parser.parse_args(argv)
    for name in ("classes", "chunk"):
        value = getattr(args, name)
        setattr(args, name, (FULL if args.model == FULL["model"] else QUICK)[name] if value is None else value)
    for name in ("classes", "chunk", "steps", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    return 1 if run(argv)["faults"] else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults): peak memory and time of the whole pass over those of each other version."""
    from tests.benchmarks.table import Row

    found = run(
        [*(("--model", QUICK["model"], "--steps", "1") if quick else ()), "--out", str(folder / "classes.json")]
    )
    whole, rows = found["versions"]["whole"], []
    for name, (*_, least) in list(VERSIONS.items())[1:]:
        ours, what = found["versions"][name], f"{found['settings']['classes']:,} classes, {name}"
        rows.append(Row(f"{what}: peak memory", "MB", ours["peak_mb"], whole["peak_mb"], None if quick else least))
        rows.append(Row(f"{what}: a step", "s", ours["wall_s"], whole["wall_s"]))
    return rows, found["faults"]


def run(argv: list[str] | None) -> dict:
    """Measure, print, write; what the JSON holds."""
    args = parse(argv)
    path = os.pathsep.join([*PATH, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads)}  # before torch loads, here and there
    from dassl.utils import write_json
    from tests.benchmarks.world import World

    print(f"{args.model}: {args.classes:,} classes, chunks of {args.chunk}, {args.threads} threads, fp32\n")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), args.model, BATCH, args.classes, args.classes).write()
        rows = measure(world, args)
    faults = compare(rows)
    print_rows(rows)
    found = report(argv, args, rows, faults)
    write_json(found, str(args.out))
    print(f"\n{args.out}")
    for fault in faults:
        print(f"error: {fault}")
    return found


def measure(world, args: argparse.Namespace) -> dict[str, dict]:
    """{version: what was measured}: a process each, timed in turns so that other load falls on all."""
    from tests.benchmarks import classes  # by this name also where the file is run as a script

    server, rows = multiprocessing.get_context("forkserver"), {}
    with ExitStack() as stack:
        for name in VERSIONS:
            pool = stack.enter_context(ProcessPoolExecutor(1, server))
            first = pool.submit(classes.first, world, name, args.chunk, args.threads).result()
            rows[name] = {"pool": pool, "times": [], **first}
        for _ in range(args.steps):
            for row in rows.values():
                row["times"].append(row["pool"].submit(classes.timed).result())
    for row in rows.values():
        del row["pool"]
        row["wall_s"] = median(row["times"])
    return rows


def first(world, version: str, chunk: int, threads: int) -> dict:
    """In the version's process: one step for its loss and gradient, a second one for the peak of memory."""
    global _runner
    import torch

    from tests.benchmarks import coop
    from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb
    from tests.benchmarks.task import gradient_of
    from tests.benchmarks.worker import quiet
    from tests.benchmarks.world import first_batch

    torch.set_num_threads(threads)
    chunks, blocks, _ = VERSIONS[version]
    keys = {"MODEL__TEXT_CHUNK": chunks * chunk, "MODEL__CHECKPOINT_BLOCKS": blocks}
    with quiet():
        trainer = coop.build(world, "CoOp_LMC", FEATURES__VIEWS=1, **keys)
        trainer.use_feature_bank("train_loader_x", is_train=True)
        batch = first_batch(trainer.train_loader_x)
        _runner = lambda: float(trainer.forward_backward(batch)["loss"])  # noqa: E731
        loss, gradient = gradient_of([trainer.model.ctx], _runner)
        gc.collect()
        before = resident_mb()
        reset_peak()
        _runner()
        peak = peak_mb()
    tokens = trainer.model.tokens.shape[1]
    return {"loss": [loss], "gradient": gradient, "peak_mb": peak, "step_mb": peak - before, "tokens": tokens}


def timed() -> float:
    """Seconds of one more step."""
    import time

    from tests.benchmarks.worker import quiet

    started = time.perf_counter()
    with quiet():
        _runner()
    return time.perf_counter() - started


def compare(rows: dict[str, dict]) -> list[str]:
    """Note ratios and differences to the whole pass -> what is too far apart."""
    whole, faults = rows["whole"], []
    for name, row in rows.items():
        row["smaller"] = {key: whole[key] / row[key] for key in ("peak_mb", "step_mb")}
        row["slower"] = row["wall_s"] / whole["wall_s"]
        row["differences"] = {key: difference(row[key], whole[key]) for key in ("loss", "gradient")}
        faults += [
            f"{name}: {key} differs from the whole pass's by {apart:.1e}, allowed {LIMIT:.0e}"
            for key, apart in row["differences"].items()
            if not apart <= LIMIT
        ]
    return faults


def print_rows(rows: dict[str, dict]) -> None:
    print(COLUMNS.format("", "peak MB", "step MB", "a step", "smaller", "slower", "difference to the whole pass"))
    for name, row in rows.items():
        apart = ", ".join(f"{key} {value:.1e}" for key, value in row["differences"].items())
        cells = (f"{row['peak_mb']:,.0f}", f"{row['step_mb']:,.0f}", seconds(row["wall_s"]))
        print(COLUMNS.format(name, *cells, f"{row['smaller']['peak_mb']:.1f}", f"{row['slower']:.2f}", apart))
    print("\npeak: resident memory of the process in a step, weights included; step: what the step adds to it.")


def report(argv: list[str] | None, args: argparse.Namespace, rows: dict, faults: list) -> dict:
    """What the JSON holds."""
    import torch

    words = sys.argv[1:] if argv is None else argv
    return {
        "format": 1,
        "command": shlex.join(["python", "tests/benchmarks/classes.py", *words]),
        "settings": {key: value for key, value in vars(args).items() if key != "out"} | {"batch": BATCH},
        "packages": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "versions": {name: {k: v for k, v in row.items() if k != "gradient"} for name, row in rows.items()},
        "faults": faults,
    }


if __name__ == "__main__":
    sys.exit(main())
