"""Rows x columns x seeds: what every table is made of.

A row is a method, a column whatever a table compares it on (a data set, a subset of its classes, a number of
shots). Only evaluation runs count. A training run's own final test is left out for every protocol alike, so
that all cells come from checkpoints loaded in the same way.
"""

from dataclasses import dataclass, field

from dassl.report.methods import sort_rows
from dassl.report.results import newest_each, select
from dassl.report.stamps import collect
from dassl.report.stats import mean_by_seed, summarise, summarise_average


@dataclass
class Grid:
    """Numbers by row, column and seed.

    rows, columns: in printed order; scores: {(row, column): {seed: value}}; trained: the (row, column) of
    training runs, which name a missing cell's likely reason; stamps: of `stamps.collect`; files: {(row, column):
    paths of the results.json behind it}.
    """

    rows: list
    columns: list
    scores: dict
    trained: set = field(default_factory=set)
    stamps: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)

    def files_of(self, row, columns):
        """The results.json behind the row's cells in these columns -> list of str."""
        return [file for column in columns for file in self.files.get((row, column), [])]

    def by_seed(self, row, column):
        """{seed: value}, empty where there is none."""
        return self.scores.get((row, column), {})

    def cell(self, row, column):
        """Summary over the seeds, or None."""
        return summarise(self.by_seed(row, column))

    def average(self, row, columns=None):
        """Summary of the average over columns (default all), or None if one of them is missing."""
        return summarise_average(self._taken(row, columns))

    def average_by_seed(self, row, columns=None):
        """{seed: average over columns}, of the seeds that all columns have."""
        return mean_by_seed(self._taken(row, columns))

    def _taken(self, row, columns):
        return {column: self.by_seed(row, column) for column in (self.columns if columns is None else columns)}

    def missing(self, row, columns=None):
        """The columns (of those given, default all) without a number -> list."""
        return [column for column, scores in self._taken(row, columns).items() if not scores]

    def uneven(self, row, columns=None):
        """True if the columns that a row has do not all have the same seeds."""
        seeds = [frozenset(scores) for scores in self._taken(row, columns).values() if scores]
        return len(set(seeds)) > 1


def with_accuracy(records, **wanted):
    """Records that have an accuracy and the wanted values."""
    return [r for r in select(records, **wanted) if "accuracy" in r["metrics"]]


def fill(records, row_of, column_of):
    """Evaluation runs by cell -> {(row, column): {seed: record}}; the newest run of a cell counts."""
    cells = {}
    for record in newest_each(
        select(records, kind="eval"), key=lambda r: (row_of(r), column_of(r), r["seed"]), what="evaluations"
    ):
        cells.setdefault((row_of(record), column_of(record)), {})[record["seed"]] = record
    return cells


def without_repeats(own, lent, key):
    """Own records, and of the lent evaluation runs the newest for each `key(record)` that no own evaluation has."""
    taken = {key(r) for r in select(own, kind="eval")}
    kept = list(own)
    for record in sorted(select(lent, kind="eval"), key=lambda r: r["written"], reverse=True):
        if key(record) not in taken:
            taken.add(key(record))
            kept.append(record)
    return kept


def build(records, row_of, column_of, methods, column_key=None):
    """Records -> Grid. row_of, column_of: functions of a record; column_key: sorts the columns."""
    cells = fill(records, row_of, column_of)
    return Grid(
        rows=sort_rows((row for row, _ in cells), methods),
        columns=sorted({column for _, column in cells}, key=column_key),
        scores={cell: {seed: r["metrics"]["accuracy"] for seed, r in runs.items()} for cell, runs in cells.items()},
        trained={(row_of(r), column_of(r)) for r in select(records, kind="train")},
        stamps=collect((r for runs in cells.values() for r in runs.values()), row_of, column_of),
        files={cell: [str(r["file"]) for r in runs.values()] for cell, runs in cells.items()},
    )


def is_below(summary, reference):
    """True if a mean, as it is printed, is below the reference's; False where either is missing."""
    if summary is None or reference is None:
        return False
    return round(float(summary.mean), 2) < round(float(reference.mean), 2)
