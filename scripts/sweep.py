"""A sweep: one stage-2 command over a grid of config keys, then its table.

    python scripts/sweep.py configs/sweeps/lambda_beta.yaml                             the built-in benchmark
    python scripts/sweep.py configs/sweeps/tau.yaml --data DIR caltech101 dtd 1 2 3     public data

The yaml says `command`, `cfg` (the recipe that the cells start from), `datasets` {toy, public} (`all`: the eleven
public ones), `seeds`, and `grid` {KEY: values}, whose product are the cells, or `cells`, a list of {KEY: value}.
Zero-shot CLIP and stage 1 are run first and shared; with `whole: true` the cells change these too, and each has its
own. What is finished is skipped.
"""

import argparse
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]

from dassl.utils import ArgumentParser  # noqa: E402
from scripts.commands import COMMANDS, folder  # noqa: E402
from scripts.commands.base2new import METHODS, TESTS, Method  # noqa: E402
from scripts.commands.command import Arguments, checked_pairs, recipe  # noqa: E402
from scripts.jobs import PUBLIC, Step, step, with_keys  # noqa: E402
from scripts.main_job import add_grid_flags, grid, run_job, without_repeats  # noqa: E402

FIELDS = {"command": str, "cfg": str, "datasets": dict, "seeds": list, "grid": dict, "cells": list, "whole": bool}
ZERO_SHOT = "ZEROSHOT_CFG"  # in a cell: CFG of zero-shot CLIP; as CFG and STAGE1_CFG, no config key


@dataclass(frozen=True)
class Sweep:
    """A sweep's yaml. cells: {KEY or argument: value} each."""

    name: str
    command: str
    cfg: str
    datasets: dict[str, list[str]]
    seeds: list[int]
    cells: list[dict[str, str]]
    whole: bool = False

    @property
    def method(self) -> Method:
        return next(method for method in METHODS.values() if method.script("base2new_train") == self.command)

    @property
    def stage1(self) -> Method:
        first = self.method.train.stage1
        return next(method for method in METHODS.values() if method.script("base2new_train") == first)


def read_sweep(path: Path) -> Sweep:
    """The sweep of a yaml file; UserError for a field that is missing, unknown or of another kind."""
    from dassl.config import read_yaml
    from dassl.utils import UserError, check_availability

    tree = read_yaml(path)
    for key, value in tree.items():
        check_availability(key, list(FIELDS), f"{path}: a field")
        if not isinstance(value, FIELDS[key]):
            raise UserError(f"{path}: {key} is {value!r}, expected a {FIELDS[key].__name__}")
    lacking = [key for key in ("command", "cfg", "datasets", "seeds") if key not in tree]
    if lacking or ("grid" in tree) == ("cells" in tree):
        raise UserError(f"{path}: expected command, cfg, datasets, seeds, and either grid or cells")
    check_availability(tree["command"], [m.script("base2new_train") for m in METHODS.values() if m.train.stage1])
    cells = tree.pop("cells", None)
    if cells is None:
        axes = tree.pop("grid")
        cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    cells = [{key: str(value) for key, value in cell.items()} for cell in cells]
    for cell in cells:
        checked_pairs(pairs_of(cell))  # refuses what a script says itself
    tree["datasets"] = {where: list(PUBLIC) if sets == "all" else sets for where, sets in tree["datasets"].items()}
    return Sweep(path.stem, cells=cells, **tree)


def pairs_of(cell: dict[str, str]) -> tuple[str, ...]:
    """The config keys of a cell as KEY VALUE words; its arguments of scripts have no dot in their name."""
    return tuple(word for key, value in cell.items() if "." in key for word in (key, value))


def label(cell: dict[str, str]) -> str:
    """A folder's name for a cell, e.g. LAMBDA_8.0_BETA_0.5."""
    words = [f"{key.rpartition('.')[2]}_{value}" for key, value in cell.items() if key not in ("STAGE1_CFG", ZERO_SHOT)]
    return re.sub(r"[^\w.+-]+", "-", "_".join(words))


def halves(method: Method, arguments: Arguments, pairs: tuple[str, ...] = ()) -> list[Step]:
    """Training and both tests."""
    scripts = ("base2new_train", *TESTS)
    return [step(method.script(what), arguments, pairs=pairs) for what in scripts]


def steps(sweep: Sweep, dataset: str, seed: int, more: tuple[str, ...]) -> list[Step]:
    """All runs of a data set and seed: zero-shot CLIP, stage 1, and the command in every cell.

    more: KEY VALUE words for every run. UserError: one that the cells differ in.
    """
    from dassl.utils import UserError

    own, more = {"DATASET": dataset, "SEED": str(seed)}, tuple(checked_pairs(more))
    if shared := {key for cell in sweep.cells for key in cell}.intersection(more[::2]):
        raise UserError(f"{', '.join(sorted(shared))}: the cells of {sweep.name} differ in it; change the yaml")
    found = [] if sweep.whole else with_keys(references(sweep, own, {}), more)
    for cell in sweep.cells:
        arguments = {"COOP_LMC": "True"} | recipe(COMMANDS[sweep.command], cell.get("CFG", sweep.cfg)) | own
        place = f"sweeps/{sweep.name}/{label(cell)}"
        if not sweep.whole:  # a cell's keys are in the name of its folder
            keys = (*pairs_of(cell), "TRAINER.MODAL", "sweep")
            found += with_keys(halves(sweep.method, arguments | {"SWEEP": place}, keys), more)
            continue
        first = dict(own)
        if cell:
            first |= {"OUTPUT": str(Path(folder("OUTPUT", "output"), place))}
            arguments |= first | {key: value for key, value in cell.items() if key == "STAGE1_CFG"}
        runs = references(sweep, first, cell) + halves(sweep.method, arguments)
        found += with_keys(runs, pairs_of(cell) + more)
    return found


def references(sweep: Sweep, own: Arguments, cell: dict[str, str]) -> list[Step]:
    """Zero-shot CLIP and stage 1."""
    zero_shot = own | ({"CFG": cell[ZERO_SHOT]} if ZERO_SHOT in cell else {})
    first = own | ({"CFG": cell["STAGE1_CFG"]} if "STAGE1_CFG" in cell else {})
    return [step(f"zsclip/{what}", zero_shot) for what in TESTS] + halves(sweep.stage1, first)


def report(sweep: Sweep) -> None:
    """The table of this kind of sweep, from everything below OUTPUT."""
    from mergetune.report import main as report_main

    output = folder("OUTPUT", "output")
    report_main([output, "--out", output, "--figures", "--protocol", "backbones" if sweep.whole else "sweep"])


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type="path", metavar="YAML", help="a file of configs/sweeps")
    add_grid_flags(parser)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys for every run")
    args = parser.parse_intermixed_args()
    from dassl.utils import UserError

    path = Path(args.sweep).absolute()
    sweep = read_sweep(path)

    def plan(args) -> list[list[Step]]:
        here = "public" if args.data else "toy"
        datasets, seeds = grid(args, sweep.datasets.get(here, []), sweep.seeds)
        if not datasets:
            raise UserError(f"{path.name} declares no {here} data sets: name some")
        return without_repeats([steps(sweep, name, seed, tuple(args.set)) for seed in seeds for name in datasets])

    return run_job(args, plan, lambda: report(sweep))


if __name__ == "__main__":
    from dassl.utils import errors_in_one_line

    with errors_in_one_line():
        sys.exit(main())
