"""Base-to-new: accuracy on the classes of training, on unseen ones, and the harmonic mean H of the two.

H = 2 base new / (base + new). On one data set it is computed for each seed, then averaged over seeds.
Over several data sets there are two conventions, up to a point apart, and the table names both:
  H of averages   H of the averaged base and the averaged new accuracy; what the papers print
  mean of H       the mean of the data sets' own H
Only evaluation runs count, so base and new come from the same checkpoint, loaded in the same way.
"""

from dataclasses import dataclass

from dassl.report.grid import Grid, build, is_below, with_accuracy
from dassl.report.methods import (
    CSV_HEAD,
    Methods,
    csv_head,
    names_on,
    row_names,
    row_of,
    shared_settings,
    split_by_template,
    zero_shot_row,
)
from dassl.report.results import select
from dassl.report.sheet import EVALUATIONS_LEGEND, SEEDS_LEGEND, Sheet
from dassl.report.stamps import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.stats import Summary, harmonic_mean, summarise
from dassl.report.tables import BELOW, Table, csv_numbers, show, show_n
from dassl.utils import UserError

PROTOCOL = "base2new"
SUBSETS = ("base", "new")
QUANTITIES = (*SUBSETS, "H")
AVERAGES = ("base", "new", "H of averages", "mean of H")
JUDGED = ("new", "H")  # what "below zero-shot" is about


@dataclass
class Base2New:
    """Accuracies in percent. grid: columns (data set, quantity), H among them; datasets: in printed order."""

    grid: Grid
    datasets: list
    methods: Methods

    @property
    def rows(self):
        """In printed order."""
        return self.grid.rows

    def by_seed(self, row, dataset, quantity):
        """{seed: percent} of "base", "new", or "H" of the seeds that have both."""
        return self.grid.by_seed(row, (dataset, quantity))

    def cell(self, row, dataset):
        """{"base", "new", "H": Summary or None} over the seeds of one data set."""
        return {q: self.grid.cell(row, (dataset, q)) for q in QUANTITIES}

    def average(self, row):
        """{"base", "new", "H of averages", "mean of H": Summary or None}; None if any data set is missing."""
        base, new, mean_of_h = (self.grid.average(row, self.columns(q)) for q in QUANTITIES)
        h = None
        if base and new:
            spread = summarise(self.h_by_seed(row))
            h = Summary(harmonic_mean(base.mean, new.mean), spread and spread.std, spread.n if spread else 0)
        return {"base": base, "new": new, "H of averages": h, "mean of H": mean_of_h}

    def columns(self, quantity):
        """The grid's columns of one quantity."""
        return [(dataset, quantity) for dataset in self.datasets]

    def h_by_seed(self, row):
        """{seed: H of the averaged base and new accuracy}, of the seeds that all data sets have on both."""
        base, new = (self.grid.average_by_seed(row, self.columns(subset)) for subset in SUBSETS)
        return {seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new}

    def missing(self, row):
        """What a row lacks, in words -> list such as ["toy_digits (new)"]."""
        gaps = []
        for dataset in self.datasets:
            lacking = [q for _, q in self.grid.missing(row, [(dataset, s) for s in SUBSETS])]
            if lacking:
                trained = any((row, (dataset, subset)) in self.grid.trained for subset in SUBSETS)
                hint = "; trained, not evaluated" if trained else ""
                gaps.append(f"{dataset} ({' and '.join(lacking)}{hint})")
        return gaps

    def below(self, row):
        """Where a row is below zero-shot CLIP -> {data set: list of the quantities of JUDGED}, both if empty."""
        reference = zero_shot_row(row, self.rows, self.methods)
        found = {}
        for dataset in self.datasets if reference else []:
            ours, theirs = self.cell(row, dataset), self.cell(reference, dataset)
            found[dataset] = [q for q in JUDGED if is_below(ours[q], theirs[q])]
        return {dataset: quantities for dataset, quantities in found.items() if quantities}


def base2new(records, methods=None, protocol=PROTOCOL, row=None):
    """Records of `load_results` -> Base2New. UserError if none is a base-to-new evaluation.

    protocol: one name or several; row: function of a record, if rows are something else than methods.
    """
    methods = methods or Methods()
    runs = split_by_template(with_accuracy(records, protocol=protocol, subset=SUBSETS), methods)
    if not select(runs, kind="eval"):
        raise UserError(
            f"No base-to-new table: of {len(records)} results, {len(runs)} follow the protocol {protocol!r} "
            "on the base or new classes and none of these is an evaluation run"
        )
    grid = build(
        runs,
        row_of=row or (lambda r: row_of(r, methods)),
        column_of=lambda r: (r["dataset"], r["subset"]),
        methods=methods,
    )
    datasets = sorted({dataset for dataset, _ in grid.columns}, key=methods.dataset_rank)
    _add_h(grid, datasets)
    return Base2New(grid, datasets, methods)


def _add_h(grid, datasets):
    """H beside base and new, for each seed that has both."""
    grid.columns = [(dataset, quantity) for dataset in datasets for quantity in QUANTITIES]
    for row in grid.rows:
        for dataset in datasets:
            base, new = (grid.by_seed(row, (dataset, subset)) for subset in SUBSETS)
            grid.scores[row, (dataset, "H")] = {s: harmonic_mean(base[s], new[s]) for s in base if s in new}


def average_table(found):
    """The average over data sets -> Table with columns method, base, new, H of averages, mean of H, n."""
    names = row_names(found.rows)
    rows, notes, files = [], [], {}
    for number, row in enumerate(found.rows):
        average = found.average(row)
        reference = zero_shot_row(row, found.rows, found.methods)
        theirs = found.average(reference) if reference else dict.fromkeys(AVERAGES)
        marks = [q != "base" and is_below(average[q], theirs[q]) for q in AVERAGES]
        rows.append([names[row], *map(show, average.values(), marks), show_n(average.values())])
        notes += _notes(found, row, names[row])
        for place, subsets in enumerate((("base",), ("new",), SUBSETS, SUBSETS), start=1):
            files[number, place] = found.grid.files_of(row, [c for s in subsets for c in found.columns(s)])
    count = len(found.datasets)
    title = f"Average over {count} data set{'s' if count > 1 else ''}"
    return Table(title, ["method", *AVERAGES, "n"], rows, notes + stamp_notes(found.grid, names), files)


def _notes(found, row, name):
    """What a reader of the row's average must know."""
    notes = []
    if gaps := found.missing(row):
        notes.append(f"{name}: not averaged where a data set is missing: {', '.join(gaps)}.")
    if found.grid.uneven(row, found.columns("base") + found.columns("new")):
        notes.append(
            f"{name}: data sets have different seeds; means use all of them, "
            "deviations and n only the seeds that all data sets share."
        )
    if below := found.below(row):
        where = ", ".join(f"{dataset} ({', '.join(quantities)})" for dataset, quantities in below.items())
        notes.append(f"{name}: below zero-shot on: {where}.")
    return notes


def dataset_table(found, dataset):
    """One data set -> Table with columns method, base, new, H, n."""
    names = names_on(dataset, found.grid)
    rows, files = [], {}
    for number, row in enumerate(found.rows):
        cell, below = found.cell(row, dataset), found.below(row).get(dataset, [])
        rows.append([names[row], *(show(s, q in below) for q, s in cell.items()), show_n(cell.values())])
        for place, subsets in enumerate((("base",), ("new",), SUBSETS), start=1):
            files[number, place] = found.grid.files_of(row, [(dataset, subset) for subset in subsets])
    return Table(dataset, ["method", *QUANTITIES, "n"], rows, files=files)


def base2new_sheet(records, methods=None):
    """Records -> Sheet: the average over data sets, then each data set."""
    return sheet_of(base2new(records, methods))


def sheet_of(found):
    """Base2New -> Sheet."""
    settings = shared_settings(found.rows)
    return Sheet(
        name=PROTOCOL,
        heading="Base-to-new accuracy in percent" + (f" ({settings})" if settings else ""),
        tables=[average_table(found), *(dataset_table(found, d) for d in found.datasets)],
        legend=[
            SEEDS_LEGEND,
            "H: harmonic mean of base and new, per seed, then averaged over seeds",
            "H of averages: H of the averaged base and the averaged new accuracy (as papers print it)",
            "mean of H: mean over data sets of their H",
            f"{BELOW}: H or accuracy on new classes below zero-shot CLIP's on the same backbone",
            EVALUATIONS_LEGEND,
        ],
        columns=[*CSV_HEAD, "dataset", "quantity", "mean", "std", "n", *STAMP_COLUMNS],
        lines=_csv_lines(found),
        files=_csv_files(found),
    )


def _csv_lines(found):
    """One line for each row, data set (or "average") and quantity; no mean and n 0 if missing."""
    names = row_names(found.rows)
    lines = []
    for row in found.rows:
        cells = {"average": found.average(row), **{d: found.cell(row, d) for d in found.datasets}}
        head, stamps = csv_head(row, names), stamp_cells(found.grid, row)
        for dataset, cell in cells.items():
            lines += [[*head, dataset, q, *csv_numbers(summary), *stamps] for q, summary in cell.items()]
    return lines


def _csv_files(found):
    """The results.json behind each of these lines."""
    files = []
    for row in found.rows:
        for datasets, quantities in ((found.datasets, AVERAGES), *(([name], QUANTITIES) for name in found.datasets)):
            for quantity in quantities:
                subsets = [quantity] if quantity in SUBSETS else SUBSETS
                files.append(found.grid.files_of(row, [(name, subset) for subset in subsets for name in datasets]))
    return files
