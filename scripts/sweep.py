"""A sweep: one stage-2 command over a grid of config keys, then its table.

    python scripts/sweep.py configs/sweeps/lambda_beta.yaml                             the built-in benchmark
    python scripts/sweep.py configs/sweeps/tau.yaml --data DIR caltech101 dtd 1 2 3     public data

The yaml says `command`, `cfg` (the recipe that the cells start from), `datasets` {toy, public} (`all`: the eleven
public ones), `seeds`, and `grid` {KEY: values}, whose product are the cells, or `cells`, a list of {KEY: value}.
Zero-shot CLIP and stage 1 are run first and shared; with `whole: true` the cells change these too, and each has its
own. What is finished is skipped.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import ArgumentParser, errors_in_one_line  # noqa: E402
from scripts.grid import read_sweep  # noqa: E402
from scripts.main_job import add_grid_flags, report, run_job  # noqa: E402


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type="path", metavar="YAML", help="a file of configs/sweeps")
    add_grid_flags(parser)
    args = parser.parse_intermixed_args()
    args.sweep = os.path.abspath(args.sweep)
    protocol = "backbones" if read_sweep(args.sweep).whole else "sweep"
    return run_job(args, after=lambda: report("--protocol", protocol))


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
