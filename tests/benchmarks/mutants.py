"""Do the tests notice when ConDU's fusion is broken? Ten lines, one broken at a time in a copy.

    python tests/benchmarks/mutants.py

Prints how many tests of tests/test_delta.py and tests/test_fusion.py fail for each; a few minutes. Fails where
none does, where a line is no longer there, and where the copy fails before it is broken.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/test_delta.py", "tests/test_fusion.py")
COPIED = ("condu/__init__.py", "condu/delta.py", "condu/fusion.py", "condu/merge.py", "condu/packing.py", *TESTS,
          "tests/__init__.py", "tests/fixtures/deltas.py")  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """`before`, a part of one line of `file`, becomes `after`."""

    file: str
    before: str
    after: str
    breaks: str


MUTANTS = (
    Mutant("delta", "values.sum(0) > 0", "values.sum(0) >= 0", "ties go to the smallest value"),
    Mutant("delta", "values.amax(0), values.amin(0))", "values.mean(0), values.mean(0))", "the largest is elected"),
    Mutant("delta", "value > 0, value < 0)", "value >= 0, value <= 0)", "a zero is in no mask"),
    Mutant("delta", "else own / left", "else left / own", "scales preserve the norm"),
    Mutant("delta", 'if scale == "tensor_mean" else 1.0', "if False else 1.0", "tensor_mean weighs tensors alike"),
    Mutant("merge", "flip_bits.sub_(1).bitwise_and_(SIGN)", "flip_bits.bitwise_and_(SIGN)", "ties, one at a time"),
    Mutant("merge", "self.bits * own).amax(1)", "self.bits * own).sum(1)", "L is the largest scale, not the sum"),
    Mutant("merge", "mask & keep for mask", "mask for mask", "old masks lose what flipped"),
    Mutant("merge", "sums.add_(more_sums)", "sums", "all groups of old tasks vote"),
    Mutant("fusion", "[*self.norms, own]", "[*left[:-1], own]", "a task's norm is a constant"),
)


def main(argv: list[str] | None = None) -> int:
    """Run, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    if missing := [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]:
        parser.error(f"it needs {' and '.join(missing)}: pip install -r tests/requirements.txt")
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy(root)
        failed, ran = run(root)
        if failed or not ran:
            faults.append(f"{failed} of {ran} tests fail before a line is broken")
        for mutant in MUTANTS if not faults else ():
            failed = noticed(root, mutant)
            if not failed:
                faults.append(f"{mutant.file}.py: no test notices {mutant.after!r} for {mutant.before!r}")
            print(f"{failed or 0:4} of {ran} tests notice, {mutant.file}.py: {mutant.breaks}", flush=True)
    for fault in faults:
        print(f"error: {fault}")
    return 1 if faults else 0


def copy(root: Path) -> None:
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)


def noticed(root: Path, mutant: Mutant) -> int:
    """How many tests fail with the line broken; it is mended afterwards. 0 too where the line is not there."""
    path = root / "condu" / f"{mutant.file}.py"
    text = path.read_text()
    if text.count(mutant.before) != 1:
        print(f"error: {mutant.before!r} is {text.count(mutant.before)} times in condu/{mutant.file}.py, expected once")
        return 0
    path.write_text(text.replace(mutant.before, mutant.after))
    try:
        return run(root)[0]
    finally:
        path.write_text(text)


def run(root: Path) -> tuple[int, int]:
    """(failed, all) tests of the copy, which alone is on the path."""
    words = [sys.executable, "-B", "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "--noconftest", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (failed|passed|error)", done.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return failed, failed + counts.get("passed", 0)


if __name__ == "__main__":
    sys.exit(main())
