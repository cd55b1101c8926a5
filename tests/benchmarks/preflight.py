"""What `--check` says a run takes beside what it takes: seconds and peak memory, on the toy world.

    python tests/benchmarks/preflight.py

Each pair of processes runs one after the other on 2 threads: about 4 minutes on two quiet cores, `--quick` 1 minute.
Expected: every ratio within 1 / 1.5 and 1.5. Other load that comes or goes between check and run shows in the ratios.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.benchmarks.table import Row  # noqa: E402

BAND = 1.5
COLUMNS = "{:20}{:>12}{:>12}{:>8}{:>14}{:>12}{:>8}"
SHOTS = ("DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base")
# trainer: data set, CFG, KEY VALUE pairs
RUNS = {
    "CoOp": ("toy_shapes", "CoOp/vit_b16_ep100_ctxv1", SHOTS),
    "CoOp_LMC": ("toy_shapes", "CoOp_LMC/released", SHOTS),
    "MultiModalAdapter": ("toy_shapes", "MultiModalAdapter/vit_b16_ep20", SHOTS),
    "FineTune": ("toy_objects", "FineTune/toy", ("TRAINER.MODAL", "robust")),
}
QUICK = ("OPTIM.MAX_EPOCH", "20")
CODE = "import json, sys, train; print(json.dumps(train.main(sys.argv[1:])))"


def main(argv: list[str] | None = None) -> int:
    """Run, print; the exit status: 1 if a ratio is out of the band."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--quick", action="store_true", help="20 epochs of each at most")
    args = parser.parse_args(argv)
    rows = measure(args.runs, args.quick)
    out = [row for row in rows if not row.met]
    print(f"{len(out)} ratios out of 1 / {BAND} to {BAND}")
    return 1 if out else 0


def gather(quick: bool, folder: Path) -> tuple[list, list[str]]:
    """(rows of table.py, faults): the smaller of estimate and real over the larger."""
    rows = measure(["CoOp"] if quick else list(RUNS), quick)
    return [replace(row, least=None) for row in rows] if quick else rows, []


def measure(names: list[str], quick: bool) -> list[Row]:
    """Print a line a run; its rows."""
    print(COLUMNS.format("", "estimate s", "real s", "ratio", "estimate MiB", "real MiB", "ratio"))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            first = ["--resume-coop", str(Path(place, "CoOp"))] if name == "CoOp_LMC" else []
            if first and not Path(place, "CoOp", "results.json").is_file():
                call("CoOp", place, quick)
            found, real = call(name, place, quick, *first, "--check"), call(name, place, quick, *first)
            pairs = {"s": (found["seconds"], real["wall_s"]), "MB": (found["peak_mb"], real["peak_mb"])}
            cells = [f"{cell:.2f}" for a, b in pairs.values() for cell in (a, b, a / b)]
            print(COLUMNS.format(name, *cells), flush=True)
            for unit, pair in pairs.items():
                what = "time" if unit == "s" else "peak memory"
                rows.append(Row(f"{name}: {what} foreseen, as taken", unit, max(pair), min(pair), 1 / BAND))
    return rows


def call(name: str, place: str, quick: bool, *words: str) -> dict:
    """One command line in a process of its own; what it returns."""
    data, config, pairs = RUNS[name]
    argv = [
        *("--root", f"{place}/data", "--seed", "1", "--trainer", name, "--output-dir", f"{place}/{name}"),
        *("--dataset-config-file", f"configs/datasets/{data}.yaml"),
        *("--config-file", f"configs/trainers/{config}.yaml", *words),
        *("FEATURES.DIR", f"{place}/features/{name}", *pairs, *(QUICK if quick else ())),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    line = [sys.executable, "-c", CODE, *argv]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
