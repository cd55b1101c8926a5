"""What a training step and an evaluation cost, the released way and ours, as ratios in one run on the CPU.

    python tests/benchmarks/step.py

Random ViT-B/16, 20 classes, batch 32, 2 threads, fp32: about 10 minutes on two quiet cores, most of them in
the plain CoOp_LMC step (45 s). Versions: `plain` is the released way (plain.py), `pixels` our trainer on
images, `bank` our trainer on stored features. Fails where loss, gradient or logits of ours and the plain way
differ by more than 1e-5, or where a version does not do the tower passes it stands for.
"""

import argparse
import math
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
PATH = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]
sys.path[:0] = PATH

LIMIT = 1e-5  # relative difference allowed
# our version -> how many times faster than the plain one in the full setting, on 2 quiet cores
TASKS = {
    "CoOp_LMC": {"pixels": 5, "bank": 100},
    "CoOp": {"pixels": None, "bank": 25},
    "evaluation": {"bank": 100},
}
FULL = {"model": "vit_b16", "batch": 32, "classes": 20, "threads": 2}
CALLS = {"plain": 1, "pixels": 1, "bank": 5}  # timed in each round: short ones more often
COLUMNS = "{:12}{:9}{:>6}{:>5}{:>5}{:>12}{:>12}{:>8}{:>9}"
LEGEND = """
image, text, grad: tower passes of a call, and text passes with gradient among them. wall, CPU: medians of a
training step, or of a test image; CPU over all threads. matrix: share of matrix products in a profiled call.
peak MB: resident memory of the version's own process in its first call, weights included.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=("vit_b16", "small"), default=FULL["model"])
    add("--steps", type=int, default=3, help="timed rounds")
    add("--batch", type=int, default=FULL["batch"], help="images a training step")
    add("--test-batch", type=int, default=100, help="images a test batch")
    add("--classes", type=int, default=FULL["classes"])
    add("--threads", type=int, default=FULL["threads"])
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / "step.json")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "test_batch", "classes", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    args = parse(argv)
    path = os.pathsep.join([*PATH, *filter(None, [os.environ.get("PYTHONPATH")])])  # the fork server's
    # before torch loads, here and in the workers; the profiler says aloud that it finds no GPU, unless hushed
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads), "KINETO_LOG_LEVEL": "99"}
    from dassl.utils import write_json
    from tests.benchmarks.world import World

    with tempfile.TemporaryDirectory() as folder:
        print(f"{args.model}: {args.classes} classes, batch {args.batch}, {args.threads} threads, fp32\n")
        print(COLUMNS.format("", "version", "image", "text", "grad", "wall", "CPU", "matrix", "peak MB"))
        world = World(Path(folder), args.model, args.batch, args.classes, args.test_batch).write()
        tasks = {task: measure(world, task, args) for task in TASKS}
    full = FULL.items() <= vars(args).items()
    comparisons = [compare(task, v, rows, full) for task, rows in tasks.items() for v in TASKS[task]]
    print_comparisons(comparisons)
    faults = [*wrong_passes(tasks), *(fault for row in comparisons for fault in row["faults"])]
    write_json(report(argv, args, tasks, comparisons, faults), str(args.out))
    print(f"\n{args.out}")
    for fault in faults:
        print(f"error: {fault}")
    return 1 if faults else 0


def measure(world, task: str, args: argparse.Namespace) -> dict[str, dict]:
    """{version: what was measured}: a process each, timed in turns so that other load falls on all."""
    from tests.benchmarks import variants

    server = multiprocessing.get_context("forkserver")  # forks a process that has only imported
    server.set_forkserver_preload([variants.__name__])
    with ExitStack() as stack:
        pools = {v: stack.enter_context(ProcessPoolExecutor(1, server)) for v in ("plain", *TASKS[task])}

        def call(version: str, function, *arguments):
            return pools[version].submit(function, *arguments).result()

        rows = {}
        for version in pools:
            images = call(version, variants.open_runner, world, task, version, args.threads)
            rows[version] = {"images": images, "times": [], **call(version, variants.first)}
            rows[version]["expected_passes"] = variants.PASSES[task, version]
        for _ in range(args.steps):
            for version in pools:
                rows[version]["times"] += call(version, variants.timed, CALLS[version])
        for version, row in rows.items():
            row["matrix_share"] = call(version, variants.profiled)
            per = row["images"] if task == "evaluation" else 1  # seconds an image, or a step
            wall, cpu = zip(*row["times"], strict=True)
            row |= {"wall_s": median(wall) / per, "cpu_s": median(cpu) / per}
            print_row(task, version, row)
    return rows


def compare(task: str, version: str, rows: dict[str, dict], full: bool) -> dict:
    """Ours against the plain version: how many times faster, and how far apart; `full`: the full setting."""
    plain, ours = rows["plain"], rows[version]
    ratio = plain["wall_s"] / ours["wall_s"]
    expected = TASKS[task][version] if full else None
    values = {name: value for name, value in plain["values"].items() if name != "index"}
    differences = {name: difference(ours["values"][name], value) for name, value in values.items()}
    faults = [
        f"{task}, {version}: {name} differs from the plain version's by {apart:.1e}, allowed {LIMIT:.0e}"
        for name, apart in differences.items()
        if not apart <= LIMIT
    ]
    if ours["values"]["index"] != plain["values"]["index"]:
        faults.append(f"{task}, {version}: not the plain version's images")
    return {
        "task": task, "version": version, "ratio": ratio, "cpu_ratio": plain["cpu_s"] / ours["cpu_s"],
        "expected": expected, "met": None if expected is None else ratio >= expected,
        "differences": differences, "faults": faults,
    }  # fmt: skip


def difference(ours: list[float], plain: list[float]) -> float:
    """|ours - plain| / |plain|, in the Euclidean norm."""
    apart = math.dist(ours, plain)
    return apart / math.hypot(*plain) if apart else 0.0


def wrong_passes(tasks: dict) -> list[str]:
    """What ran another number of tower passes than it stands for."""
    return [
        f"{task}, {version}: image, text, text-with-gradient passes are {row['passes']}, "
        f"expected {row['expected_passes']}"
        for task, rows in tasks.items()
        for version, row in rows.items()
        if row["passes"] != row["expected_passes"]
    ]


def print_row(task: str, version: str, row: dict) -> None:
    times = seconds(row["wall_s"]), seconds(row["cpu_s"])
    share, peak = f"{row['matrix_share']:.0%}", f"{row['peak_mb']:,.0f}"
    print(COLUMNS.format(task, version, *row["passes"], *times, share, peak), flush=True)


def print_comparisons(comparisons: list[dict]) -> None:
    print(LEGEND)
    print(f"{'ours':20}{'faster':>10}{'CPU':>8}{'expected':>10}{'met':>5}   relative difference to plain")
    for row in comparisons:
        name = f"{row['task']} {row['version']}"
        expected = "-" if row["expected"] is None else f">= {row['expected']}"
        met = {None: "-", True: "yes", False: "no"}[row["met"]]
        apart = ", ".join(f"{key} {value:.1e}" for key, value in row["differences"].items())
        print(f"{name:20}{row['ratio']:10.1f}{row['cpu_ratio']:8.1f}{expected:>10}{met:>5}   {apart}")


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def report(argv: list[str] | None, args: argparse.Namespace, tasks: dict, comparisons: list, faults: list):
    """What the JSON holds: settings, every time, medians, passes, peaks, comparisons."""
    import torch

    measured = {
        task: {v: {k: x for k, x in row.items() if k != "values"} for v, row in rows.items()}
        for task, rows in tasks.items()
    }
    words = sys.argv[1:] if argv is None else argv
    return {
        "format": 1, "command": shlex.join(["python", "tests/benchmarks/step.py", *words]),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "tasks": measured, "comparisons": comparisons, "faults": faults,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
