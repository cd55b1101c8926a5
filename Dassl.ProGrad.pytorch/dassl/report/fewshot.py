"""The few-shot curve: accuracy on all classes by the number of training pictures a class.

Zero-shot CLIP sees no shots; its row has the same number in every column.
"""

from dataclasses import dataclass

from dassl.report.grid import Grid, build, is_below, with_accuracy, without_repeats
from dassl.report.methods import (
    CSV_HEAD,
    Methods,
    csv_head,
    names_on,
    row_names,
    row_of,
    sees_no_data,
    split_by_template,
    zero_shot_row,
)
from dassl.report.results import select
from dassl.report.sheet import EVALUATIONS_LEGEND, SEEDS_LEGEND, Sheet
from dassl.report.stamps import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.tables import BELOW, Table, csv_numbers, show, show_n
from dassl.utils import UserError

PROTOCOL = "fewshot"
SUBSET = "all"


@dataclass
class FewShot:
    """Accuracies in percent. grid: columns (data set, shots)."""

    grid: Grid
    datasets: list
    shots: list
    methods: Methods

    def columns(self, shots, dataset=None):
        """The grid's columns of a number of shots, on one data set or all."""
        return [(d, shots) for d in ([dataset] if dataset else self.datasets)]

    def average(self, row, shots, dataset=None):
        """Summary on one data set, or of the average over all; None if one is missing."""
        return self.grid.average(row, self.columns(shots, dataset))


def fewshot(records, methods=None):
    """Records of `load_results` -> FewShot. UserError if there is no evaluation."""
    methods = methods or Methods()
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    own = [r for r in select(runs, protocol=PROTOCOL) if not sees_no_data(r) and r.get("shots") is not None]
    if not select(own, kind="eval"):
        raise UserError(
            f"No fewshot table: of {len(records)} results, {len(own)} follow the protocol {PROTOCOL!r} on all "
            "classes and none of these is an evaluation run"
        )
    shots = sorted({r["shots"] for r in own if r["kind"] == "eval"})
    datasets = {r["dataset"] for r in own if r["kind"] == "eval"}
    lent = [{**r, "shots": k} for r in runs if sees_no_data(r) and r["dataset"] in datasets for k in shots]

    def row(record):
        return row_of(record, methods, shots=False)

    own = without_repeats(own, lent, lambda r: (row(r), r["dataset"], r["shots"], r["seed"]))
    own = [{**r, "data_seen": _without_shots(r)} for r in own]
    grid = build(
        own,
        row_of=row,
        column_of=lambda r: (r["dataset"], r["shots"]),
        methods=methods,
    )
    return FewShot(grid, sorted(datasets, key=methods.dataset_rank), shots, methods)


def _without_shots(record):
    """The stamp `data_seen` without its number of shots, which is the column."""
    seen = record.get("data_seen")
    return seen.replace(f"{record['shots']} shots", "the shots") if isinstance(seen, str) else seen


def _table(found, dataset=None):
    """-> Table with a column for each number of shots, on one data set or on average."""
    names, rows, notes, files = names_on(dataset, found.grid), [], [], {}
    for number, row in enumerate(found.grid.rows):
        reference = zero_shot_row(row, found.grid.rows, found.methods)
        cells = [found.average(row, k, dataset) for k in found.shots]
        theirs = [found.average(reference, k, dataset) if reference else None for k in found.shots]
        marks = map(is_below, cells, theirs)
        rows.append([names[row], *map(show, cells, marks), show_n(cells)])
        for place, k in enumerate(found.shots, start=1):
            files[number, place] = found.grid.files_of(row, found.columns(k, dataset))
        if dataset is None:
            notes += _notes(found, row, names[row], reference)
    count = len(found.datasets)
    title = dataset or f"Average over {count} data set{'s' if count > 1 else ''}"
    if dataset is None:
        notes += stamp_notes(found.grid, names)
    return Table(title, ["method", *map(_column, found.shots), "n"], rows, notes, files)


def _column(shots):
    return "all" if shots < 1 else "1 shot" if shots == 1 else f"{shots} shots"


def _notes(found, row, name, reference):
    notes = []
    columns = [column for k in found.shots for column in found.columns(k)]
    if gaps := found.grid.missing(row, columns):
        shown = ", ".join(
            f"{dataset} at {k}" + ("; trained, not evaluated" if (row, (dataset, k)) in found.grid.trained else "")
            for dataset, k in gaps
        )
        notes.append(f"{name}: no run on: {shown}.")
    if found.grid.uneven(row, columns):
        notes.append(f"{name}: cells have different seeds; deviations and n are of the seeds that data sets share.")
    cell = found.grid.cell
    below = [c for c in columns if reference and is_below(cell(row, c), cell(reference, c))]
    if below:
        notes.append(f"{name}: below zero-shot on: {', '.join(f'{dataset} at {k}' for dataset, k in below)}.")
    return notes


def fewshot_sheet(records, methods=None):
    """Records -> Sheet: the average over data sets, then each data set."""
    found = fewshot(records, methods)
    single = [None] if len(found.datasets) == 1 else [None, *found.datasets]
    backbones = {row.backbone for row in found.grid.rows}
    return Sheet(
        name=PROTOCOL,
        heading="Accuracy in percent by shots" + (f" ({backbones.pop()})" if len(backbones) == 1 else ""),
        tables=[_table(found, dataset) for dataset in single],
        legend=[SEEDS_LEGEND, f"{BELOW}: below zero-shot CLIP on the same backbone", EVALUATIONS_LEGEND],
        columns=[*CSV_HEAD[:-1], "dataset", "shots", "mean", "std", "n", *STAMP_COLUMNS],
        lines=_csv_lines(found),
        files=[
            found.grid.files_of(row, found.columns(k, dataset))
            for row in found.grid.rows
            for dataset in (None, *found.datasets)
            for k in found.shots
        ],
    )


def _csv_lines(found):
    names = row_names(found.grid.rows)
    return [
        [*csv_head(row, names)[:-1], dataset or "average", k, *csv_numbers(found.average(row, k, dataset))]
        + stamp_cells(found.grid, row)
        for row in found.grid.rows
        for dataset in (None, *found.datasets)
        for k in found.shots
    ]
