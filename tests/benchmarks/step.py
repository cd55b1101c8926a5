"""What a training step and an evaluation cost, the released way and ours, as ratios in one run on the CPU.

    python tests/benchmarks/step.py

Random ViT-B/16, 20 classes, each method's own batch, 2 threads, fp32: about 20 minutes on two quiet cores, most
of them in the plain steps (CoOp_LMC 45 s), and 13 GiB for the plain MMA_LMC step; `--tasks` chooses, `--model
small` is a matter of seconds. Versions: `plain` is the released way (plain.py, mma.py), `pixels` our trainer on
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
FULL = {"model": "vit_b16", "classes": 20, "threads": 2}  # besides each task's own batch
QUICK = ("--model", "small", "--batch", "4", "--classes", "5", "--test-batch", "10", "--steps", "1")
CALLS = {"plain": 1, "pixels": 1, "bank": 5}  # timed in each round: short ones more often
COLUMNS = "{:14}{:8}{:26}{:>10}{:>10}{:>8}{:>9}"
LEGEND = """
passes: of each tower in a call, and behind the slash those with a graph for gradients. wall, CPU: medians of a
training step, or of a test image; CPU over all threads. matrix: share of matrix products in a profiled call.
peak MB: resident memory of the version's own process in its first call, weights included. faster, smaller: wall
time and peak memory of the plain way over ours; expected: on two quiet cores in the full setting.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", default=[], help="what to measure (default: all)")
    add("--model", choices=("vit_b16", "small"), default=FULL["model"])
    add("--steps", type=int, default=3, help="timed rounds")
    add("--batch", type=int, help="images a training step (default: each method's own)")
    add("--test-batch", type=int, default=100, help="images a test batch")
    add("--classes", type=int, default=FULL["classes"])
    add("--threads", type=int, default=FULL["threads"])
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / "step.json")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "test_batch", "classes", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    return 1 if run(argv)["faults"] else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults): time of every version of ours, memory where something is expected of it."""
    from tests.benchmarks.table import Row
    from tests.benchmarks.worker import TASKS

    found = run([*(QUICK if quick else ()), "--out", str(folder / "step.json")])
    rows = []
    for pair in found["comparisons"]:
        task, version = pair["task"], pair["version"]
        plain, ours = (found["tasks"][task][which] for which in ("plain", version))
        for key, field, unit, what in (("faster", "wall_s", "s", ""), ("smaller", "peak_mb", "MB", ", peak memory")):
            if key == "faster" or getattr(TASKS[task].versions[version], key):
                rows.append(Row(f"{task} {version}{what}", unit, ours[field], plain[field], pair["expected"][key]))
    return rows, found["faults"]


def run(argv: list[str] | None) -> dict:
    """Measure, print, write; what the JSON holds."""
    args = parse(argv)
    path = os.pathsep.join([*PATH, *filter(None, [os.environ.get("PYTHONPATH")])])  # the fork server's
    # before torch loads, here and in the workers; the profiler says aloud that it finds no GPU, unless hushed
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads), "KINETO_LOG_LEVEL": "99"}
    from dassl.utils import UserError, check_availability, write_json
    from tests.benchmarks.worker import TASKS
    from tests.benchmarks.world import World

    try:
        for name in args.tasks:
            check_availability(name, list(TASKS), "--tasks")
    except UserError as error:
        sys.exit(f"error: {error}")
    tasks = {name: TASKS[name] for name in args.tasks or TASKS}
    print(f"{args.model}: {args.classes} classes, {args.threads} threads, fp32\n")
    print(COLUMNS.format("", "version", "passes", "wall", "CPU", "matrix", "peak MB"))
    measured, comparisons = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, task in tasks.items():
            batch = args.batch or task.batch
            world = World(Path(folder), args.model, batch, args.classes, args.test_batch).write()
            measured[name] = measure(world, name, task, args)
            full = batch == task.batch and FULL.items() <= vars(args).items()
            comparisons += [compare(name, v, measured[name], task, full) for v in list(task.versions)[1:]]
    print_comparisons(comparisons)
    faults = [*wrong_passes(measured), *(fault for row in comparisons for fault in row["faults"])]
    found = report(argv, args, measured, comparisons, faults)
    write_json(found, str(args.out))
    print(f"\n{args.out}")
    for fault in faults:
        print(f"error: {fault}")
    return found


def measure(world, name: str, task, args: argparse.Namespace) -> dict[str, dict]:
    """{version: what was measured}: a process each, timed in turns so that other load falls on all."""
    from tests.benchmarks import worker

    server = multiprocessing.get_context("forkserver")  # forks a process that has only imported
    server.set_forkserver_preload([worker.__name__])
    with ExitStack() as stack:
        pools = {v: stack.enter_context(ProcessPoolExecutor(1, server)) for v in task.versions}

        def call(version: str, function, *arguments):
            return pools[version].submit(function, *arguments).result()

        rows = {}
        for version in pools:
            images = call(version, worker.open_runner, world, name, version, args.threads)
            rows[version] = {"images": images, "times": [], **call(version, worker.first)}
            rows[version]["expected_passes"] = {k: list(v) for k, v in task.versions[version].passes.items()}
        for _ in range(args.steps):
            for version in pools:
                rows[version]["times"] += call(version, worker.timed, CALLS[version])
        for version, row in rows.items():
            row["matrix_share"] = call(version, worker.profiled)
            per = row["images"] if task.per_image else 1  # seconds an image, or a step
            wall, cpu = zip(*row["times"], strict=True)
            row |= {"wall_s": median(wall) / per, "cpu_s": median(cpu) / per}
            print_row(name, version, row)
    return rows


def compare(name: str, version: str, rows: dict[str, dict], task, full: bool) -> dict:
    """Ours against the plain version: how many times faster, and how far apart; `full`: the full setting."""
    plain, ours = rows["plain"], rows[version]
    ratios = {"faster": plain["wall_s"] / ours["wall_s"], "smaller": plain["peak_mb"] / ours["peak_mb"]}
    expected = {key: getattr(task.versions[version], key) if full else None for key in ratios}
    values = {key: value for key, value in plain["values"].items() if key != "index"}
    differences = {key: difference(ours["values"][key], value) for key, value in values.items()}
    faults = [
        f"{name}, {version}: {key} differs from the plain version's by {apart:.1e}, allowed {LIMIT:.0e}"
        for key, apart in differences.items()
        if not apart <= LIMIT
    ]
    if ours["values"]["index"] != plain["values"]["index"]:
        faults.append(f"{name}, {version}: not the plain version's images")
    return {
        "task": name, "version": version, **ratios, "cpu_ratio": plain["cpu_s"] / ours["cpu_s"],
        "expected": expected,
        "met": {key: None if least is None else ratios[key] >= least for key, least in expected.items()},
        "differences": differences, "faults": faults,
    }  # fmt: skip


def difference(ours: list[float], plain: list[float]) -> float:
    """|ours - plain| / |plain|, in the Euclidean norm."""
    apart = math.dist(ours, plain)
    return apart / math.hypot(*plain) if apart else 0.0


def wrong_passes(tasks: dict) -> list[str]:
    """What ran another number of tower passes than it stands for."""
    return [
        f"{task}, {version}: passes are {shown(row['passes'])}, expected {shown(row['expected_passes'])}"
        for task, rows in tasks.items()
        for version, row in rows.items()
        if row["passes"] != row["expected_passes"]
    ]


def shown(passes: dict[str, list[int]]) -> str:
    return ", ".join(f"{tower} {count}/{graph}" for tower, (count, graph) in passes.items())


def print_row(task: str, version: str, row: dict) -> None:
    times = seconds(row["wall_s"]), seconds(row["cpu_s"])
    share, peak = f"{row['matrix_share']:.0%}", f"{row['peak_mb']:,.0f}"
    print(COLUMNS.format(task, version, shown(row["passes"]), *times, share, peak), flush=True)


def print_comparisons(comparisons: list[dict]) -> None:
    print(LEGEND)
    print(f"{'ours':22}{'faster':>8}{'expected':>14}{'CPU':>8}{'smaller':>9}{'expected':>14}   difference to plain")
    for row in comparisons:
        said = {key: "-" if least is None else f">= {least} " + ("yes" if row["met"][key] else "no")
                for key, least in row["expected"].items()}  # fmt: skip
        apart = ", ".join(f"{key} {value:.1e}" for key, value in row["differences"].items())
        print(
            f"{row['task'] + ' ' + row['version']:22}{row['faster']:8.1f}{said['faster']:>14}{row['cpu_ratio']:8.1f}"
            f"{row['smaller']:9.1f}{said['smaller']:>14}   {apart}"
        )


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
        "settings": {k: v for k, v in vars(args).items() if k != "out"} | {"tasks": list(tasks)},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "tasks": measured, "comparisons": comparisons, "faults": faults,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
