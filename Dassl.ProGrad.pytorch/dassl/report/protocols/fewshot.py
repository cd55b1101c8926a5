"""The few-shot curve: accuracy on all classes by the number of training pictures a class.

Zero-shot CLIP sees no shots; its row has the same number in every column.
"""

from dataclasses import dataclass

from dassl.report.disclosures import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.frame import Grid, build, with_accuracy, without_repeats
from dassl.report.methods import (
    NONE,
    Methods,
    names_on,
    row_names,
    row_of,
    sees_no_data,
    shared_settings,
    split_by_template,
)
from dassl.report.records import require_evaluations, select
from dassl.report.table import BELOW, below_zero_shot, csv_lines, data_sets, method_report, method_table, row_notes

PROTOCOL = "fewshot"
SUBSET = "all"


@dataclass
class FewShot:
    """Accuracies in percent. grid: columns (data set, shots)."""

    grid: Grid
    datasets: list
    shots: list
    methods: Methods

    def cells(self, row, dataset=None):
        """{shots: Summary} on one data set, or of the average over all; no number if one is missing."""
        datasets = [dataset] if dataset else self.datasets
        return {k: self.grid.cell(row, *((d, k) for d in datasets)) for k in self.shots}


def fewshot(records, methods=NONE):
    """Records of `load_results` -> FewShot. NoRuns if there is no evaluation."""
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    own = [r for r in select(runs, protocol=PROTOCOL) if not sees_no_data(r) and r.get("shots") is not None]
    require_evaluations(own, records, PROTOCOL, PROTOCOL, "all")
    shots = sorted({r["shots"] for r in own if r["kind"] == "eval"})
    datasets = {r["dataset"] for r in own if r["kind"] == "eval"}
    lent = [{**r, "shots": k} for r in runs if sees_no_data(r) and r["dataset"] in datasets for k in shots]

    def row(record):
        return row_of(record, methods, shots=False)

    own = without_repeats(own, lent, lambda r: (row(r), r["dataset"], r["shots"], r["seed"]))
    for k, r in enumerate(own):
        if isinstance(seen := r.get("data_seen"), str):  # the number of shots is the column
            own[k] = {**r, "data_seen": seen.replace(f"{r['shots']} shots", "the shots")}
    grid = build(own, row, lambda r: (r["dataset"], r["shots"]), methods)
    return FewShot(grid, sorted(datasets, key=methods.dataset_rank), shots, methods)


def _table(found, dataset=None):
    """-> Table with a column for each number of shots, on one data set or on average."""
    names, notes = names_on(dataset, found.grid), []
    if dataset is None:
        notes = [note for row in names for note in _notes(found, row, names[row])] + stamp_notes(found.grid, names)
    title = dataset or f"Average over {data_sets(found.datasets)}"
    columns = ["all" if k < 1 else "1 shot" if k == 1 else f"{k} shots" for k in found.shots]
    return method_table(title, names, columns, lambda row: found.cells(row, dataset), found.methods, notes=notes)


def _notes(found, row, name):
    columns = [(dataset, k) for k in found.shots for dataset in found.datasets]
    gaps = ", ".join(found.grid.missing(row, columns, "{0[0]} at {0[1]}".format))
    below = [f"{dataset} at {k}" for dataset, k in below_zero_shot(row, columns, found.grid, found.methods)]
    return row_notes(
        name,
        gaps and f"no run on: {gaps}",
        found.grid.uneven(row, columns)
        and "cells have different seeds; deviations and n are of the seeds that data sets share",
        below and f"below zero-shot on: {', '.join(below)}",
    )


def fewshot_report(records, methods=NONE):
    """Records -> Report: the average over data sets, then each data set."""
    found = fewshot(records, methods)
    over = [None, *found.datasets]
    lines = csv_lines(
        row_names(found.grid.rows),
        lambda row: {(d or "average", k): s for d in over for k, s in found.cells(row, d).items()},
        stamp_cells(found.grid),
    )
    report = method_report(
        PROTOCOL,
        "Accuracy in percent by shots" + shared_settings(found.grid.rows),  # none of the rows says its shots
        [_table(found, dataset) for dataset in (over if len(over) > 2 else over[:1])],
        [f"{BELOW}: below zero-shot CLIP on the same backbone"],
        ["dataset", "shots"],
        lines,
        STAMP_COLUMNS,
    )
    for line in [report.columns, *report.lines]:
        del line[4]  # of the row: shots are a column of the cells here
    return report
