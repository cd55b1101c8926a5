"""What fusing one task more costs: ConDU's `absorb` against decoupling and unifying all tasks at once, on the CPU.

    python tests/benchmarks/fusion.py

Random deltas of ViT-B/16's 149.6 M parameters, tasks 2 to 11, 2 threads: about 20 minutes on two quiet cores, all
but one of them in the plain way, which takes 12 GiB at 11 tasks; `--plain 11` runs it once, `--model small` is a
matter of seconds. Plain is `condu.delta.unify` itself, on masks of a byte a parameter. Both ways start from the same
state, and their results are compared. Fails where they differ: weights and scales by more than 1e-6, masks
elsewhere than where the elected sum is below 1e-6 of its largest term.
"""

import argparse
import multiprocessing
import os
import platform
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]
sys.path[:0] = PATH

TARGETS = {"faster": 10, "copies": 25, "extra_mb": 1000, "clones": 4}  # at 11 tasks of ViT-B/16
COLUMNS = "{:>5}" + "{:>10}" * 10
TITLES = ("tasks", "absorb", "copy", "plain", "faster", "extra MB", "plain MB", "disk MB", "write", "expert", "clone")
LEGEND = """
absorb, plain: seconds for one task more. copy: cloning what absorb reads, the new delta, the unified one and the
masks, once. faster: plain over absorb. extra: peak resident memory beyond the new delta and the state before.
disk, write: the state, and writing that many bytes with fsync. expert, clone: seconds to write one expert's
weights, and to clone the pretrained ones.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=("vit_b16", "small", "tiny"), default="vit_b16")
    add("--tasks", type=int, default=11, help="the last number of tasks")
    add("--plain", type=int, nargs="*", help="numbers of tasks that the plain way unifies (default: 2 to --tasks)")
    add("--repeats", type=int, default=3, help="timed calls of ours; the plain way is run once")
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / "fusion.json")
    args = parser.parse_args(argv)
    for name, least in (("tasks", 2), ("repeats", 1), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least {least}")
    args.plain = list(range(2, args.tasks + 1)) if args.plain is None else sorted(set(args.plain))
    if args.plain and not 2 <= args.plain[0] <= args.plain[-1] <= args.tasks:
        parser.error(f"--plain is {args.plain}, expected numbers from 2 to {args.tasks}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    return 1 if run(argv)["faults"] else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults) of the last task; the plain way fuses that one alone."""
    from tests.benchmarks.table import Row

    words = ["--model", "small", "--tasks", "2"] if quick else ["--plain", "11"]
    found = run([*words, "--out", str(folder / "fusion.json")])
    row, targets = found["rows"][-1], {} if quick else TARGETS
    allowed = {name: 1 / targets[name] for name in ("copies", "clones") if targets}
    rows = [
        Row("one task more: unifying all", "s", row["absorb_s"], row["plain_s"], targets.get("faster")),
        Row("one task more: copying what it reads", "s", row["absorb_s"], row["copy_s"], allowed.get("copies")),
        Row("one expert's weights: cloning a model", "s", row["expert_s"], row["clone_s"], allowed.get("clones")),
        Row("one task more, extra memory: unifying all", "MB", row["extra_mb"], row["plain_mb"]),
    ]
    if targets:
        rows.append(Row("one task more, extra memory: the limit", "MB", row["extra_mb"], targets["extra_mb"], 1))
    return rows, found["faults"]


def run(argv: list[str] | None) -> dict:
    """Measure, print, write; what the JSON holds."""
    args = parse(argv)
    path = os.pathsep.join([*PATH, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(args.threads)}  # before torch loads, in the workers
    print(f"{args.model}, {args.threads} threads\n\n" + COLUMNS.format(*TITLES), flush=True)
    ours, plain = Worker(args), Worker(args)
    rows = []
    for tasks in range(2, args.tasks + 1):
        row = {"tasks": tasks, **ours.call("absorb", tasks, args.repeats)}
        if tasks in args.plain:
            row |= plain.call("plain", tasks)
            row["faster"] = row["plain_s"] / row["absorb_s"]
        rows.append(row)
        print(line(row), flush=True)
    print(LEGEND)
    full = args.model == "vit_b16" and args.tasks == 11
    met = {name: judge(name, rows[-1]) for name in TARGETS} if full else {}
    faults = [f"{row['tasks']} tasks: {fault}" for row in rows for fault in row.get("faults", ())]
    found = write(argv, args, rows, met, faults)
    for name, (value, fine) in met.items():
        print(f"{name}: {value:.1f}, target {TARGETS[name]}: {'yes' if fine else 'no'}")
    for fault in faults:
        print(f"error: {fault}")
    return found


class Worker:
    """A process of its own that keeps one stream, so that its memory is that of one way alone."""

    def __init__(self, args: argparse.Namespace):
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.call("open_stream", args.model, args.threads)

    def call(self, name: str, *arguments):
        """A function of fusion_worker, run there."""
        from tests.benchmarks import fusion_worker

        return self.pool.submit(getattr(fusion_worker, name), *arguments).result()


def judge(name: str, row: dict) -> tuple[float, bool] | None:
    """(value, whether the target is met); without the plain way it is no faster than nothing."""
    value = {
        "faster": row.get("faster", 0.0),
        "copies": row["absorb_s"] / row["copy_s"],
        "extra_mb": row["extra_mb"],
        "clones": row["expert_s"] / row["clone_s"],
    }[name]
    return value, value >= TARGETS[name] if name == "faster" else value <= TARGETS[name]


def line(row: dict) -> str:
    keys = (
        "absorb_s",
        "copy_s",
        "plain_s",
        "faster",
        "extra_mb",
        "plain_mb",
        "disk_mb",
        "write_s",
        "expert_s",
        "clone_s",
    )
    values = [f"{row[key]:,.0f}" if key.endswith("mb") else f"{row[key]:.3g}" for key in keys if key in row]
    if "plain_s" not in row:
        values = [*values[:2], "-", "-", values[2], "-", *values[3:]]
    return COLUMNS.format(row["tasks"], *values)


def write(argv: list[str] | None, args: argparse.Namespace, rows: list, met: dict, faults: list) -> dict:
    """The JSON; what it holds."""
    import torch

    from dassl.utils import write_json

    words = sys.argv[1:] if argv is None else argv
    found = {
        "format": 1, "command": shlex.join(["python", "tests/benchmarks/fusion.py", *words]),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "versions": {"torch": torch.__version__, "python": platform.python_version()}, "cores": os.cpu_count(),
        "rows": rows, "targets": TARGETS, "met": {name: fine for name, (_, fine) in met.items()}, "faults": faults,
    }  # fmt: skip
    write_json(found, str(args.out))
    print(args.out)
    return found


if __name__ == "__main__":
    sys.exit(main())
