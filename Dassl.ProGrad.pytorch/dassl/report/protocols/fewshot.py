"""The few-shot curve: accuracy on all classes by the number of training images a class.

Zero-shot CLIP sees no shots; its row has the same number in every column.
"""

from dataclasses import dataclass, field

from dassl.report import table
from dassl.report.disclosures import STAMP_COLUMNS, names_on, stamp_cells, stamp_notes
from dassl.report.frame import Grid, Row, Summary, build, with_accuracy
from dassl.report.methods import NONE, Methods, row_of, sees_no_data, shared_settings, split_by_template
from dassl.report.records import require_evaluations, select, without_repeats

PROTOCOL = "fewshot"
SUBSET = "all"


@dataclass
class FewShot(Grid):
    """Accuracies in percent by columns (data set, shots)."""

    datasets: list[str] = field(default_factory=list)
    shots: list[int] = field(default_factory=list)

    def on(self, row: Row, dataset: str | None = None) -> dict[int, Summary]:
        """{shots: Summary} on one data set, or of the average over all; no number if one is missing."""
        datasets = self.datasets if dataset is None else [dataset]
        return {k: self.cell(row, *((d, k) for d in datasets)) for k in self.shots}


def fewshot(records: list[dict], methods: Methods = NONE) -> FewShot:
    """From records of `load_results`. NoRuns if there is no evaluation."""
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    trained = [r for r in select(runs, protocol=PROTOCOL) if not sees_no_data(r) and r.get("shots") is not None]
    require_evaluations(trained, records, PROTOCOL, PROTOCOL, "all")
    shots = sorted({r["shots"] for r in trained if r["kind"] == "eval"})
    datasets = {r["dataset"] for r in trained if r["kind"] == "eval"}
    lent = [{**r, "shots": k} for r in runs if sees_no_data(r) and r["dataset"] in datasets for k in shots]

    def row(record):
        return row_of(record, methods)._replace(shots=None)

    runs = without_repeats(trained, lent, lambda r: (row(r), r["dataset"], r["shots"], r["seed"]))
    # the number of shots is the column
    runs = [{**r, "data_seen": (r.get("data_seen") or "").replace(f"{r['shots']} shots", "the shots")} for r in runs]
    grid = build(runs, row, lambda r: (r["dataset"], r["shots"]), methods)
    return FewShot(**vars(grid), datasets=sorted(datasets, key=methods.dataset_rank), shots=shots)


def _table(grid, dataset=None):
    """-> Table with a column for each number of shots, on one data set or on average."""
    names, notes = names_on(dataset, grid), []
    if dataset is None:
        columns = [(dataset, k) for k in grid.shots for dataset in grid.datasets]
        uneven = "cells have different seeds; deviations and n are of the seeds that data sets share"
        notes = table.column_notes(grid, columns, columns, "no run on", uneven, "{0[0]} at {0[1]}".format)
        notes += stamp_notes(grid, names)
    title = f"Average over {table.data_sets(grid.datasets)}" if dataset is None else dataset
    columns = ["all" if k < 1 else "1 shot" if k == 1 else f"{k} shots" for k in grid.shots]
    return table.method_table(title, grid, names, columns, lambda row: grid.on(row, dataset), notes=notes)


def fewshot_report(records: list[dict], methods: Methods = NONE) -> table.Report:
    """The average over data sets, then each data set. NoRuns if there is no evaluation."""
    grid, lines = fewshot(records, methods), []
    over = [None, *grid.datasets]
    for row, name in grid.names.items():
        by_dataset = {"average": grid.on(row)} | {dataset: grid.on(row, dataset) for dataset in grid.datasets}
        cells = {(dataset, k): summary for dataset, cell in by_dataset.items() for k, summary in cell.items()}
        lines += table.csv_lines(name, row, cells, stamp_cells(grid, row))
    report = table.method_report(
        PROTOCOL,
        "Accuracy in percent by shots" + shared_settings(grid.rows),  # none of the rows says its shots
        [_table(grid, dataset) for dataset in (over if len(over) > 2 else over[:1])],
        [f"{table.BELOW}: below zero-shot CLIP on the same backbone"],
        ["dataset", "shots"],
        lines,
        STAMP_COLUMNS,
    )
    for line in [report.columns, *report.lines]:
        del line[4]  # of the row: shots are a column of the cells here
    return report
