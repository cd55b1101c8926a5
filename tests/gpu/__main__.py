"""What only a GPU can show, as one Markdown table: bash tests/gpu.sh [--only NAME ...]

Under 10 minutes on one CUDA card: every trainer's steps in fp32, amp, fp16 and bf16 against the CPU, whole runs that
are resumed with --deterministic, NCCL, the peak-memory line, and absolute times of ViT-B/16's shapes with random
weights. A check that fails is a row that says so, and exit status 1; the others run. Without a CUDA device: one line,
exit status 1. --device cpu goes through the same checks on the CPU, --quick on small models.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("trainers", "resume", "processes", "peak_line", "towers", "steps", "compiled", "classes", "fusion", "bank")
COLUMNS = ("check", "setting", "seconds", "memory, MB", "difference to CPU", "ok")


def parse(argv: list[str] | None) -> argparse.Namespace:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bash tests/gpu.sh", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--only", nargs="+", choices=CHECKS, default=CHECKS, metavar="NAME", help=", ".join(CHECKS))
    add("--trainers", nargs="+", default=[], metavar="NAME", help="whose steps (default: all that are registered)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, which says nothing of a GPU")
    add("--quick", action="store_true", help="small models, once")
    add("--out", type=Path, default=Path(os.environ.get("OUTPUT") or "output") / "gpu.md", help="the table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check, print, write; the exit status."""
    args = parse(argv)
    import torch

    from tests.gpu.row import Place

    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"error: no CUDA device that PyTorch {torch.__version__} can use", file=sys.stderr)
        return 1
    words = sys.argv[1:] if argv is None else argv
    command, started, rows = shlex.join(["bash", "tests/gpu.sh", *words]), time.monotonic(), []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(torch.device(args.device), Path(folder), args.quick, tuple(args.trainers))
        for name in args.only:
            for row in guarded(name, check(name), place):
                print("  ".join(cell for cell in row.cells() if cell), flush=True)
                rows.append(row)
                args.out.write_text(page(rows, place.device, command, time.monotonic() - started))  # so far
    failed = sum(bool(row.fault) for row in rows)
    print(f"\n{args.out}: {len(rows)} rows, {failed} of them not as they should be")
    return 1 if failed else 0


def check(name: str) -> Callable:
    """The function of a check: Place -> rows."""
    from tests.gpu import runs, sizes, trainers

    return next(vars(module)[name] for module in (trainers, runs, sizes) if name in vars(module))


def guarded(name: str, function: Callable, place):
    """The rows of a check, and one for what ends it early."""
    from tests.gpu.row import Row, one_line

    try:
        yield from function(place)
    except Exception as error:  # the others are still of interest
        yield Row(name, "ended early", fault=one_line(error))


def page(rows: list, device, command: str, seconds: float) -> str:
    """The Markdown."""
    import torch

    from dassl.utils.device import device_name

    what = f"{device_name(device)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    lines = [f"`{command}`: {what}, {seconds:.0f} s in all", ""]
    table = [COLUMNS, ("---", "---", "---:", "---:", "---:", "---"), *(row.cells() for row in rows)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in table), ""])


if __name__ == "__main__":
    sys.exit(main())
