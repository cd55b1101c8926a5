"""Two methods on the same seeds: runs that share a seed share their draw of images, so differences are paired.

For each stage-2 row beside its stage-1 row (and beside its controls, the other rows of that stage): the difference
in H of averages, its 95 % interval (Student's t over seeds), on how many data sets the mean H is higher, and how
many seeds a difference of this size needs. The same of the accuracy on other data sets, where rows have one.
"""

import functools
import math
from functools import partial
from typing import NamedTuple

import numpy as np

from dassl.report.frame import is_below
from dassl.report.methods import NONE, Methods, is_control
from dassl.report.protocols.base2new import OTHERS, base2new
from dassl.report.records import NoRuns
from dassl.report.table import MISSING, Cell, Report, Table, data_sets, row_notes

LEVEL, POWER = 0.95, 0.80
MOST = 1000  # more seeds than anybody runs
BESIDE = ["method", "beside"]
NUMBERS = ["95 % interval", "wins", "n", "seeds needed"]


class Paired(NamedTuple):
    """mean: of the differences, in points; low, high: its interval, None for one seed; needed: seeds, or None."""

    mean: float
    low: float | None
    high: float | None
    n: int
    needed: int | None


def paired_difference(first: dict, second: dict) -> Paired | None:
    """{seed: value} twice -> Paired over the seeds that both have, or None without one."""
    differences = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())], dtype=float)
    n = len(differences)
    if n < 2:
        return Paired(float(differences[0]), None, None, 1, None) if n else None
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    half = float(student((1 + LEVEL) / 2)[n - 1]) * deviation / math.sqrt(n)
    return Paired(mean, mean - half, mean + half, n, seeds_needed(mean, deviation))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Fewest seeds at which a test at 5 % finds such a difference in 80 % of cases; None beyond MOST.

    n >= ((t(0.975) + t(0.8)) deviation / difference)^2 with n - 1 degrees of freedom (the usual sample size of a
    paired t test); at least 2. deviation: of single differences, with n - 1 in its denominator.
    """
    if difference == 0:
        return None
    quantiles = student((1 + LEVEL) / 2)[1:] + student(POWER)[1:]
    seeds = np.arange(2, MOST + 1)
    enough = seeds >= (quantiles * deviation / difference) ** 2
    return int(seeds[enough.argmax()]) if enough.any() else None


@functools.cache
def student(probability: float) -> np.ndarray:
    """Quantiles of Student's t distributions with 0 (none, so NaN) to MOST - 1 degrees of freedom -> (MOST,)."""
    from scipy.special import stdtrit  # what scipy.stats takes, without a second of start-up

    return stdtrit(np.arange(MOST), probability)


def paired_report(records: list[dict], methods: Methods = NONE) -> Report:
    """Records -> Report. NoRuns if no stage-2 row has its stage-1 row beside it."""
    grid = base2new(records, methods)
    tables = [_table(grid, "H of averages", "H", grid.h_by_seed)]
    if len(tables[0].notes) == len(tables[0].rows):
        raise NoRuns("No paired table: no stage-2 method has its stage-1 method on the same seeds and data sets")
    columns, lines = tables[0].columns, tables[0].rows
    if OTHERS in grid.of_others:
        tables.append(_table(grid, OTHERS, OTHERS, partial(grid.average_by_seed, columns=grid.each(OTHERS))))
        columns = [*columns, tables[1].columns[2], *(f"{name} ({OTHERS})" for name in NUMBERS)]
        lines = [line + more[2:] for line, more in zip(lines, tables[1].rows, strict=True)]
    return Report(
        name="paired",
        heading="Base-to-new H, paired over seeds",
        tables=tables,
        legend=[
            "interval: 95 %, Student's t over the seeds' differences; wins: data sets with a higher mean "
            + " or ".join(["H", OTHERS][: len(tables)]),
            "seeds needed: for 80 % power at 5 % if difference and spread are as seen; an estimate from few seeds "
            "is rough",
            f"{MISSING}: no number, or no interval from a single seed",
        ],
        columns=columns,
        lines=lines,
    )


def _table(grid, quantity, short, by_seed):
    """-> Table of the differences in a quantity. short: its name on one data set; by_seed: row -> {seed: average}.

    wins: on how many data sets the mean is higher, as printed; a tie counts half.
    """
    names, rows, notes = grid.names, [], []
    for pair in _pairs(grid):
        beside = [names[row] for row in pair]
        paired = paired_difference(*map(by_seed, pair))
        if paired is None:
            gaps = [f"{names[row]} lacks {gaps}" for row in pair if (gaps := grid.gaps(row))]
            why = "; ".join(gaps) or "no seed that both have on all data sets"
            notes += row_notes(" beside ".join(beside), why)
        mean, low, high, n, needed = paired or (None, None, None, 0, None)
        files = [file for row in pair for file in grid.average(row)[quantity].files]
        difference = Cell(MISSING if mean is None else f"{mean:+.2f}", files)
        interval = MISSING if low is None else f"{low:+.2f} to {high:+.2f}"
        cells = [[grid.cell(row, column) for row in pair] for column in grid.each(short)]
        points = [(1 + is_below(b, a) - is_below(a, b)) / 2 for a, b in cells if a and b]
        seeds = MISSING if low is None else str(needed or f"over {MOST}")
        rows.append([*beside, difference, interval, f"{sum(points):g} of {len(points)}", str(n), seeds])
    title = f"Difference in {quantity} over {data_sets(grid.datasets)}"
    return Table(title, [*BESIDE, f"difference in {short}", *NUMBERS], rows, notes)


def _pairs(grid):
    """(stage-2 row, row of its stage 1 or of a control) where backbone and shots agree."""
    for row in grid.rows:
        stage1 = grid.methods.stage1.get(row.trainer)
        if stage1 is None or row.merge or is_control(row.preset):
            continue
        for other in grid.rows:
            alike = (other.backbone, other.shots, other.merge) == (row.backbone, row.shots, "")
            control = other.trainer == row.trainer and is_control(other.preset)
            if other.chosen and not (control and other.chosen == row.chosen):  # nothing continues those
                continue
            if alike and (control or other.trainer in (stage1, f"{stage1}_Average")):
                yield row, other
