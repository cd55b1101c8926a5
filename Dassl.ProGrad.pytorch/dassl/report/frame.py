"""Rows x columns x seeds, and their means: what every table is made of.

A row is a method, a column whatever a table compares it on (a data set, a subset of its classes, a number of
shots). Only evaluation runs count. A training run's own final test is left out for every protocol alike, so
that all cells come from checkpoints loaded in the same way.

Deviations are those of the population, as tools/parse_test_res.py prints them. Values may be numbers or arrays of one
shape (a curve of P points); everything works element by element.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dassl.report.methods import NONE, Methods, Row, row_names, sort_rows
from dassl.report.records import newest_each, select


class Summary(NamedTuple):
    """Mean, population deviation (None for a single value), number of seeds, and the results.json behind them.

    Without a number the mean is None and the summary is false.
    """

    mean: Any
    std: Any = None
    n: int = 0
    files: tuple = ()

    def __bool__(self):
        return self.mean is not None


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new); 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def summarise(by_seed: dict) -> Summary:
    """{seed: value} -> Summary."""
    values = list(by_seed.values())
    if not values:
        return Summary(None)
    std = np.std(values, axis=0) if len(values) > 1 else None
    return Summary(np.mean(values, axis=0), std, len(values))


def mean_by_seed(by_dataset: dict) -> dict:
    """{data set: {seed: value}} -> {seed: mean over data sets}, for the seeds that every data set has."""
    seeds = set.intersection(*(set(by_seed) for by_seed in by_dataset.values())) if by_dataset else set()
    return {s: np.mean([by_seed[s] for by_seed in by_dataset.values()], axis=0) for s in sorted(seeds)}


def summarise_average(by_dataset: dict) -> Summary:
    """{data set: {seed: value}} -> Summary of the average over data sets, without a number if one of them is empty.

    The mean is that of the data sets' means, whatever their seeds. Deviation and n are those of the
    averages of single seeds, so they come from the seeds that all data sets share; n may be 0.
    """
    if not by_dataset or not all(by_dataset.values()):
        return Summary(None)
    mean = np.mean([np.mean(list(by_seed.values()), axis=0) for by_seed in by_dataset.values()], axis=0)
    return summarise(mean_by_seed(by_dataset))._replace(mean=mean)


def barrier(t: ArrayLike, values: ArrayLike, low_is_good: bool = True) -> float:
    """How far a curve on a straight line rises over the line between its own ends; 0 if it never does.

    max over t of L(t) - [(1 - s) L(start) + s L(end)], s from 0 to 1, as in Entezari et al. (arXiv 2110.06296);
    Frankle et al. (arXiv 1912.05671) subtract the mean of both ends, which calls unequal ends a barrier.

    t, values: (P,), ends included; low_is_good False: how far it falls below, as for accuracy.
    """
    t, values = np.asarray(t, dtype=float), np.asarray(values, dtype=float)
    s = (t - t[0]) / (t[-1] - t[0])
    rise = values - ((1 - s) * values[0] + s * values[-1])
    rise[[0, -1]] = 0.0  # exactly, whatever rounding leaves
    return float(np.max(rise if low_is_good else -rise)) + 0.0  # no -0.0


@dataclass
class Grid:
    """Numbers by row, column and seed; rows and columns in printed order."""

    rows: list[Row]
    columns: list
    scores: dict  # {(row, column): {seed: value}}
    runs: dict  # {(row, column): records behind it}
    methods: Methods = NONE
    trained: set = field(default_factory=set)  # (row, column) of training runs: a missing cell's likely reason

    @property
    def names(self) -> dict[Row, str]:
        """{row: printed}."""
        return row_names(self.rows)

    def by_seed(self, row: Row, column: Any) -> dict:
        """{seed: value}, empty where there is none."""
        return self.scores.get((row, column), {})

    def cell(self, row: Row, *columns: Any) -> Summary:
        """Summary over the seeds; of several columns that of their average, no number if one of them is missing."""
        files = tuple(str(run["file"]) for column in columns for run in self.runs.get((row, column), ()))
        return summarise_average({column: self.by_seed(row, column) for column in columns})._replace(files=files)

    def average_by_seed(self, row: Row, columns: Iterable) -> dict:
        """{seed: average over columns}, of the seeds that all columns have."""
        return mean_by_seed({column: self.by_seed(row, column) for column in columns})

    def uneven(self, row: Row, columns: Iterable) -> bool:
        """True if the columns that a row has do not all have the same seeds."""
        return len({frozenset(scores) for column in columns if (scores := self.by_seed(row, column))}) > 1

    def zero_shot(self, row: Row) -> Row | None:
        """Zero-shot CLIP's row on the same backbone, or None if there is none or the row is its own."""
        zero_shot = self.methods.zero_shot
        rows = [r for r in self.rows if r.trainer == zero_shot and r.backbone == row.backbone and not r.merge]
        return rows[0] if rows and row.trainer != zero_shot else None

    def add(self, row: Row, column: Any, scores: dict, *sources: tuple) -> None:
        """A number that is worked out from those of other cells, (row, column) each, by seed."""
        self.scores[row, column] = scores
        self.runs[row, column] = [run for cell in sources for run in self.runs.get(cell, ())]

    def below(self, row: Row, columns: Iterable) -> list:
        """The columns on which a row is below zero-shot CLIP on the same backbone."""
        reference = self.zero_shot(row)
        return [c for c in columns if reference and is_below(self.cell(row, c), self.cell(reference, c))]


def with_accuracy(records: list[dict], **wanted: Any) -> list[dict]:
    """Records that have an accuracy and the wanted values."""
    return [r for r in select(records, **wanted) if "accuracy" in r["metrics"]]


def fill(runs: Iterable[dict], cells_of: Callable, methods: Methods) -> Grid:
    """Runs, one for each cell and seed -> Grid. cells_of: run -> {(row, column): value}."""
    scores: dict = {}
    behind: dict = {}
    for run in runs:
        for cell, value in cells_of(run).items():
            scores.setdefault(cell, {})[run["seed"]] = value
            behind.setdefault(cell, []).append(run)
    columns = list(dict.fromkeys(column for _, column in scores))
    return Grid(sort_rows((row for row, _ in scores), methods), columns, scores, behind, methods)


def build(records: list[dict], row_of: Callable, column_of: Callable, methods: Methods) -> Grid:
    """Records -> Grid; the newest evaluation of a cell counts. row_of, column_of: functions of a record."""

    def cell_of(record):
        return row_of(record), column_of(record)

    runs = newest_each(select(records, kind="eval"), key=lambda r: (*cell_of(r), r["seed"]), what="evaluations")
    grid = fill(runs, lambda r: {cell_of(r): r["metrics"]["accuracy"]}, methods)
    grid.columns.sort()
    grid.trained = set(map(cell_of, select(records, kind="train")))
    return grid


def is_below(summary: Summary | None, reference: Summary | None) -> bool:
    """True if a mean, as it is printed, is below the reference's; False where either is missing."""
    if summary and reference:
        return round(float(summary.mean), 2) < round(float(reference.mean), 2)
    return False
