"""The barriers of path cards, in numbers: how far each straight line rises over the line between its ends' losses.

See `stats.barrier` for the definition and `paths` for the curves. A barrier is taken of each run's own curve, then
averaged over seeds and data sets: the barrier of an averaged curve would hide those that differ in place.
"""

import itertools

from dassl.report.grid import Grid, fill
from dassl.report.methods import NONE, row_names, row_of, sort_rows
from dassl.report.paths import QUANTITIES, SUBSETS, load_paths
from dassl.report.results import RESULTS_FILE, NoRuns, group_by, newest_each
from dassl.report.stats import barrier
from dassl.report.tables import MISSING, Table, csv_lines, data_sets, method_sheet, row_notes, show, show_n

LINES = {"Z-O": "zero-shot to ours", "O-F": "ours to fine-tuned", "Z-F": "zero-shot to fine-tuned"}
DIGITS = {"loss": 4, "accuracy": 2}


def run_barriers(path):
    """A path of `load_paths` -> {(key of LINES, subset, quantity): height}, of the lines that it has."""
    pieces = {"Z-O": (path, 0, 1), "O-F": (path, 1, 2)}
    if "direct" in path:
        pieces["Z-F"] = (path["direct"], 0, 1)
    found = {}
    for line, (curves, start, end) in pieces.items():
        inside = (curves["t"] >= start) & (curves["t"] <= end)
        if inside.sum() < 2:
            continue  # no zero-shot solution
        for subset in (s for s in SUBSETS if s in curves):
            for quantity in QUANTITIES:
                values = curves[subset][quantity][inside]
                found[line, subset, quantity] = barrier(curves["t"][inside], values, quantity == "loss")
    return found


def barriers_sheet(folders, methods=NONE):
    """Run folders -> Sheet with a table for each space. NoRuns if there is no path.json."""
    records = load_paths(*folders)
    if not records:
        raise NoRuns(f"No barriers table: no path.json of a finished run below {', '.join(map(str, folders))}")
    tables, lines = [], []
    for space, group in sorted(group_by(records, lambda r: r["space"]).items()):
        table, numbers = _space(space, *_grid(group, methods))
        tables.append(table)
        lines += numbers
    return method_sheet(
        "barriers",
        "Barriers on straight lines between solutions",
        tables,
        [
            "barrier: largest loss (nats) above the straight line between the losses at the ends, or accuracy "
            "(points) below it; of each run, then averaged",
            f"Z-O: {LINES['Z-O']}; O-F: {LINES['O-F']}; Z-F: {LINES['Z-F']}, straight",
            f"{MISSING}: the method has no zero-shot solution, or the card lacks the line",
        ],
        ["space", "quantity", "line", "subset"],
        lines,
        evaluations=False,
    )


def _grid(records, methods):
    """Grid with columns (data set, line, subset, quantity), and the data sets."""

    def cells(run):
        row, heights = row_of(run, methods), run_barriers(run["path"])
        return {(row, (run["dataset"], *column)): height for column, height in heights.items()}

    newest = newest_each(records, key=lambda r: (row_of(r, methods), r["dataset"], r["seed"]), what="paths")
    scores, files = fill([{**run, "file": run["file"].with_name(RESULTS_FILE)} for run in newest], cells)
    rows = sort_rows((row for row, _ in scores), methods)
    datasets = sorted({column[0] for _, column in scores}, key=methods.dataset_rank)
    return Grid(rows, list(dict.fromkeys(column for _, column in scores)), scores, files), datasets


def _cells(grid, row, datasets, subset):
    """{(quantity, line): Summary}: the average over the data sets of which the row has a card."""
    cells = {}
    for quantity, line in itertools.product(QUANTITIES, LINES):
        columns = [(dataset, line, subset, quantity) for dataset in datasets]
        cells[quantity, line] = grid.cell(row, *(column for column in columns if grid.by_seed(row, column)))
    return cells


def _space(space, grid, datasets):
    """-> Table and CSV lines of one space: a row for each method and subset of the classes that it has a card of."""
    rows, notes, lines = [], [], []
    for row, name in row_names(grid.rows).items():
        lacks = [d for d in datasets if not any(c[0] == d and grid.by_seed(row, c) for c in grid.columns)]
        has = f"average over {len(datasets) - len(lacks)} of them, no card on: {', '.join(sorted(lacks))}"
        notes += row_notes(name, lacks and has)
        for subset in SUBSETS:
            cells = _cells(grid, row, datasets, subset)
            if not any(cells.values()):
                continue
            shown = [show(cell, digits=DIGITS[quantity]) for (quantity, _), cell in cells.items()]
            rows.append([name, subset, *shown, show_n(filter(None, cells.values()))])
            numbers = {(space, quantity, LINES[line], subset): cell for (quantity, line), cell in cells.items()}
            lines += csv_lines({row: name}, {row: numbers}.get, digits=6)
    columns = ["method", "classes", *(f"{quantity} {line}" for quantity in QUANTITIES for line in LINES), "n"]
    return Table(f"Space of {space}, average over {data_sets(datasets)}", columns, rows, notes), lines
