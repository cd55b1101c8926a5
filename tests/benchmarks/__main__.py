"""Every benchmark, one table of ratios: what the plain way takes over what ours takes, in one run on the CPU.

    python -m tests.benchmarks              the full setting: 50 minutes on two quiet cores, 13 GiB
    python -m tests.benchmarks --quick      small models: under 3 minutes; ratios of small models say little

Each benchmark is a script of this folder that says more of itself. Fails where ours and the plain way differ, and, in
the full setting, where a ratio is below what is expected of it. Writes $OUTPUT/benchmarks/all.json (--quick:
$OUTPUT/benchmarks/quick/all.json).
"""

import argparse
import contextlib
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from tests.benchmarks import step  # noqa: F401  puts the engine on the path


def parse(argv: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models, nothing expected of the ratios")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, help="folder of all.json and of what each benchmark writes")
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = Path(os.environ.get("OUTPUT") or "output") / "benchmarks" / ("quick" if args.quick else "")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    from dassl.utils import write_json
    from tests.benchmarks.table import benchmarks, lines

    known = benchmarks()
    args = parse(argv, list(known))
    found, faults, seconds = {}, [], {}
    for name in args.only:
        started = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):  # its own tables
            found[name], own = known[name](args.quick, args.out)
        faults += [f"{name}: {fault}" for fault in own]
        seconds[name] = time.monotonic() - started
    print("\n".join(lines(found)))
    missed = [f"{name}: {row.name}" for name, rows in found.items() for row in rows if row.met is False]
    write_json(report(argv, args, found, missed, faults, seconds), str(args.out / "all.json"))
    print(f"\n{args.out / 'all.json'}")
    for line in (*(f"below what is expected: {name}" for name in missed), *(f"error: {fault}" for fault in faults)):
        print(line)
    return 1 if faults or missed else 0


def report(argv: list[str] | None, args: argparse.Namespace, found: dict, missed: list, faults: list, seconds: dict):
    """What the JSON holds."""
    import torch

    return {
        "format": 1,
        "command": shlex.join(["python", "-m", "tests.benchmarks", *(sys.argv[1:] if argv is None else argv)]),
        "quick": args.quick,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "seconds": seconds,
        "rows": [{"benchmark": name, **row.as_json()} for name, rows in found.items() for row in rows],
        "missed": missed,
        "faults": faults,
    }


if __name__ == "__main__":
    sys.exit(main())
