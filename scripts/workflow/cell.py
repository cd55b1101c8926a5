"""Run one cell of a grid, in one process:  python scripts/workflow/cell.py NAME WORDS...   (NAME: see workflow/grid.py)

What is finished is skipped, what was killed continues; Python, PyTorch and CLIP are paid for once.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]


def main(words: list[str]) -> int:
    """Exit status: 1 if a step failed; its error is the last that is printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="of the cell, as workflow/grid.py has it")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="WORDS", help="of the grid, as for scripts/flow.py")
    args = parser.parse_args(words)
    import torch

    from scripts.flow import read_grid
    from scripts.workers import run_cell

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    steps = [step for step in read_grid(args.words).jobs[args.name].steps if not step.finished]

    def tell(what: str, text: str) -> None:
        if what == "start":
            print(time.strftime("%H:%M:%S"), text, flush=True)

    if failure := run_cell(steps, tell):
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
