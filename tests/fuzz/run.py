"""Fuzzes every reader of files that somebody else may have written.

    python tests/fuzz/run.py
    python tests/fuzz/run.py --inputs 2000 --only yaml split --seed 3

Prints a line a target, each failure with its seed and where its input was saved, made small, and of each reader the
share of its lines that were run and the functions and lines that never were. Exit code 1 if anything failed.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]
os.environ["OMP_NUM_THREADS"] = "1"  # each target is a forked process, which a pool of threads would not survive

from tests.fuzz.campaign import Report, campaign  # noqa: E402
from tests.fuzz.lines import function_lines, ranges  # noqa: E402
from tests.fuzz.oracle import Target  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402

FEWEST = 5  # inputs of a target that starts a process for each


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=int, default=100_000, help="of all targets together (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--only", nargs="+", default=[], metavar="TARGET", choices=list(TARGETS), help=", ".join(TARGETS))
    add("--out", default="", metavar="FILE", help="all of it as JSON")
    add("--saved", default=str(ROOT / "output" / "fuzz"), metavar="DIR", help="where failing inputs go")
    return parser


def coverage(reports: list[Report]) -> dict[str, dict]:
    """{module: {"functions": {name: [run, lines]}, "never": lines}} over the functions that were entered at all."""
    seen: dict[str, set[int]] = {}
    for report in reports:
        for module, lines in report.lines.items():
            seen.setdefault(module, set()).update(lines)
    found = {}
    for module, run in sorted(seen.items()):
        functions = {name: lines for name, lines in function_lines(module).items() if lines}
        entered = {name: lines for name, lines in functions.items() if lines & run}
        every = set().union(*entered.values()) if entered else set()
        found[module] = {
            "run": len(every & run),
            "lines": len(every),
            "never": ranges(every - run),
            "not_entered": [name for name in functions if name not in entered],
        }
    return found


def shares(chosen: list[Target], inputs: int) -> dict[str, int]:
    """How many of the inputs each target gets. One that starts a process for each gets few, and beside the others."""
    whole = sum(target.weight for target in chosen if not target.child)
    few = max(FEWEST, inputs // 1000)
    return {target.name: few if target.child else -(-inputs * target.weight // whole) for target in chosen}


def show(reports: list[Report], covered: dict[str, dict] | None = None) -> None:
    print(f"{'target':14} {'inputs':>8} {'read':>8} {'refused':>8} {'failed':>7} {'kinds':>6} {'s':>6} {'a second':>9}")
    for r in reports:
        failed = r.inputs - r.read - r.refused
        rate = r.inputs / max(r.seconds, 1e-9)
        print(
            f"{r.target:14} {r.inputs:8} {r.read:8} {r.refused:8} {failed:7} {len(r.failures):6} {r.seconds:6.0f} {rate:9.0f}"  # noqa: E501
        )
    total = [sum(getattr(r, name) for r in reports) for name in ("inputs", "read", "refused")]
    print(f"{'all':14} {total[0]:8} {total[1]:8} {total[2]:8} {total[0] - total[1] - total[2]:7}")
    if covered:
        print("\nlines run of the readers' functions that were entered")
    for module, c in (covered or {}).items():
        print(f"{c['run']:5} of {c['lines']:4}  {100 * c['run'] / max(c['lines'], 1):5.1f} %  {module}")
        if c["never"]:
            print(f"{'':22}never: {c['never']}")
        if c["not_entered"]:
            print(f"{'':22}not entered: {', '.join(c['not_entered'])}")
    for report in reports:
        for failure in report.failures:
            print(f"\nFAILED {failure}")


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    chosen = [TARGETS[name] for name in args.only or TARGETS]
    share = shares(chosen, args.inputs)
    reports = []
    for target in chosen:
        inputs = share[target.name]
        reports.append(campaign(target, inputs, args.seed, Path(args.saved)))
        print(f"{target.name}: {inputs} inputs, {len(reports[-1].failures)} kinds of failure", flush=True)
    covered = coverage(reports)
    show(reports, covered)
    if args.out:
        content = {"seed": args.seed, "targets": [asdict(report) for report in reports], "coverage": covered}
        Path(args.out).write_text(json.dumps(content, indent=1))
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
