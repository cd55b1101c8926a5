"""Rows x columns x seeds: what every table is made of.

A row is a method, a column whatever a table compares it on (a data set, a subset of its classes, a number of
shots). Only evaluation runs count. A training run's own final test is left out for every protocol alike, so
that all cells come from checkpoints loaded in the same way.
"""

from dataclasses import dataclass, field

from dassl.report.disclosures import collect
from dassl.report.methods import NONE, Methods, row_names, sort_rows
from dassl.report.records import group_by, newest_each, select
from dassl.report.stats import mean_by_seed, summarise_average


@dataclass
class Grid:
    """Numbers by row, column and seed; rows and columns in printed order."""

    rows: list
    columns: list
    scores: dict  # {(row, column): {seed: value}}
    files: dict  # {(row, column): paths of the results.json behind it}
    methods: Methods = NONE
    trained: set = field(default_factory=set)  # (row, column) of training runs: a missing cell's likely reason
    stamps: dict = field(default_factory=dict)  # of `stamps.collect`
    runs: dict = field(default_factory=dict)  # {(row, column): records, one a seed}

    @property
    def names(self):
        """{row: printed}."""
        return row_names(self.rows)

    def by_seed(self, row, column):
        """{seed: value}, empty where there is none."""
        return self.scores.get((row, column), {})

    def cell(self, row, *columns):
        """Summary over the seeds; of several columns that of their average, no number if one of them is missing."""
        files = tuple(file for column in columns for file in self.files.get((row, column), ()))
        return summarise_average(self._taken(row, columns))._replace(files=files)

    def average_by_seed(self, row, columns):
        """{seed: average over columns}, of the seeds that all columns have."""
        return mean_by_seed(self._taken(row, columns))

    def _taken(self, row, columns):
        return {column: self.by_seed(row, column) for column in columns}

    def missing(self, row, columns, words=str):
        """The columns without a number -> list of what `words` says of each, and whether a run was trained there."""
        hint = "; trained, not evaluated"
        gaps = [column for column in columns if not self.by_seed(row, column)]
        return [words(column) + hint * ((row, column) in self.trained) for column in gaps]

    def uneven(self, row, columns):
        """True if the columns that a row has do not all have the same seeds."""
        return len({frozenset(scores) for scores in self._taken(row, columns).values() if scores}) > 1

    def zero_shot(self, row):
        """Zero-shot CLIP's row on the same backbone, or None if there is none or the row is its own."""
        zero_shot = self.methods.zero_shot
        rows = [r for r in self.rows if r.trainer == zero_shot and r.backbone == row.backbone and not r.merge]
        return rows[0] if rows and row.trainer != zero_shot else None

    def add(self, row, column, scores, *sources):
        """A number that is worked out from those of other cells, (row, column) each, by seed."""
        self.scores[row, column] = scores
        self.files[row, column] = [file for cell in sources for file in self.files.get(cell, ())]

    def below(self, row, columns):
        """The columns on which a row is below zero-shot CLIP on the same backbone -> list."""
        reference = self.zero_shot(row)
        return [c for c in columns if reference and is_below(self.cell(row, c), self.cell(reference, c))]


def with_accuracy(records, **wanted):
    """Records that have an accuracy and the wanted values."""
    return [r for r in select(records, **wanted) if "accuracy" in r["metrics"]]


def without_repeats(records, lent, key):
    """Records, and of the lent evaluation runs the newest for each `key(record)` that none of their evaluations has."""
    taken, kept = {key(r) for r in select(records, kind="eval")}, list(records)
    for record in sorted(select(lent, kind="eval"), key=lambda r: r["written"], reverse=True):
        if key(record) not in taken:
            taken.add(key(record))
            kept.append(record)
    return kept


def fill(runs, cells_of):
    """`scores` and `files` of a Grid. runs: one for each cell and seed; cells_of: run -> {(row, column): value}."""
    scores, files = {}, {}
    for run in runs:
        for cell, value in cells_of(run).items():
            scores.setdefault(cell, {})[run["seed"]] = value
            files.setdefault(cell, []).append(str(run["file"]))
    return scores, files


def build(records, row_of, column_of, methods):
    """Records -> Grid; the newest evaluation of a cell counts. row_of, column_of: functions of a record."""

    def cell_of(record):
        return row_of(record), column_of(record)

    runs = newest_each(select(records, kind="eval"), key=lambda r: (*cell_of(r), r["seed"]), what="evaluations")
    scores, files = fill(runs, lambda r: {cell_of(r): r["metrics"]["accuracy"]})
    return Grid(
        rows=sort_rows((row for row, _ in scores), methods),
        columns=sorted({column for _, column in scores}),
        scores=scores,
        methods=methods,
        trained=set(map(cell_of, select(records, kind="train"))),
        stamps=collect(runs, row_of, column_of),
        files=files,
        runs=group_by(runs, cell_of),
    )


def is_below(summary, reference):
    """True if a mean, as it is printed, is below the reference's; False where either is missing."""
    return bool(summary and reference) and round(float(summary.mean), 2) < round(float(reference.mean), 2)
