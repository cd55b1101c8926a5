"""Tables of streams of tasks: Transfer, Average, Last; over many orders; ablations; by task; accuracy matrices.

Tables of the three numbers have deviations; those by task are means alone, to one decimal, as papers print them.
"""

from dassl.report.grid import is_below
from dassl.report.methods import CSV_HEAD, csv_head, row_names, shared_settings, zero_shot_row
from dassl.report.mtil import KNOWN, METRICS, PROTOCOLS, Cell, orders, shown_streams, streams, trained_rows
from dassl.report.sheet import SEEDS_LEGEND, Sheet
from dassl.report.tables import BELOW, MISSING, Table, csv_numbers, show, show_n


def _one(stream, row, *cell):
    """One number to one decimal, without its deviation, as papers print tasks -> str."""
    summary = stream.grid.cell(row, Cell(*cell))
    return MISSING if summary is None else f"{summary.mean:.1f}"


def _summary_table(stream):
    """-> Table with columns method, Transfer, Average, Last, [Last with the task known], n."""
    grid, names, rows, notes, files = stream.grid, row_names(stream.grid.rows), [], [], {}
    quantities = METRICS | ({KNOWN: "Last, task known"} if Cell(KNOWN) in grid.columns else {})
    for number, row in enumerate(grid.rows):
        reference = zero_shot_row(row, grid.rows, stream.methods)
        cells = {q: grid.cell(row, Cell(q)) for q in quantities}
        marks = [bool(reference) and is_below(s, grid.cell(reference, Cell(q))) for q, s in cells.items()]
        rows.append([names[row], *map(show, cells.values(), marks), show_n([cells[q] for q in METRICS])])
        files |= {(number, place): grid.files_of(row, [Cell(q)]) for place, q in enumerate(quantities, start=1)}
        if gaps := [name for q, name in METRICS.items() if cells[q] is None]:
            notes.append(f"{names[row]}: no {' and no '.join(gaps)}, the matrix lacks cells that count.")
    title = f"{'Ablations' if stream.ablation else 'Transfer, Average, Last'}: {stream.title}"
    return Table(title, ["method", *quantities.values(), "n"], rows, notes, files)


def _task_table(stream, metric):
    """One metric by task, as papers print it -> Table with columns method, each task, mean."""
    grid, names, rows, files = stream.grid, row_names(stream.grid.rows), [], {}
    for row in grid.rows:
        lines = {names[row]: [*(Cell(metric, task) for task in stream.tasks), Cell(metric)]}
        if metric == "last" and grid.by_seed(row, Cell(KNOWN)):
            known = [Cell(KNOWN, task, stream.tasks[-1]) for task in stream.tasks]
            lines[f"{names[row]}, task known"] = [*known, Cell(KNOWN)]
        for name, cells in lines.items():
            files |= {(len(rows), place): grid.files_of(row, [cell]) for place, cell in enumerate(cells, start=1)}
            rows.append([name, *(_one(stream, row, *cell) for cell in cells)])
    title = f"{METRICS[metric]} by task: {stream.title}"
    return Table(title, ["method", *stream.tasks, "mean"], rows, _seeds_note(stream, grid.rows), files)


def _seeds_note(stream, rows):
    """How many seeds are behind means that are shown without deviation -> list of one line."""
    counts = {
        row: max((len(stream.grid.by_seed(row, cell)) for cell in stream.grid.columns), default=0) for row in rows
    }
    if len(set(counts.values())) == 1:
        return [f"n: {counts[rows[0]]} seed{'s' if counts[rows[0]] != 1 else ''}."]
    names = row_names(stream.grid.rows)
    return [f"n: {', '.join(f'{names[row]} {count}' for row, count in counts.items())}."]


def _matrix_table(stream, row):
    """One method's accuracy matrix -> Table; with a known expert's accuracy behind a stroke where there is one."""

    def cell(after, task):
        shown = _one(stream, row, "accuracy", task, after)
        known = stream.grid.by_seed(row, Cell(KNOWN, task, after))
        return f"{shown} / {_one(stream, row, KNOWN, task, after)}" if known else shown

    lines = [[after, *(cell(after, task) for task in stream.tasks)] for after in stream.tasks]
    files = {
        (i, j): stream.grid.files_of(row, [Cell("accuracy", task, after)])
        for i, after in enumerate(stream.tasks)
        for j, task in enumerate(stream.tasks, start=1)
    }
    what = "vote / known expert" if stream.grid.by_seed(row, Cell(KNOWN)) else "accuracy"
    title = f"{row_names(stream.grid.rows)[row]}, {what} after each task: {stream.title}"
    return Table(title, ["after", *stream.tasks], lines, _seeds_note(stream, [row]), files)


def _orders_table(one):
    """-> Table with a line for each method and metric."""
    names, lines = row_names(one.rows), []
    for row in one.rows:
        for metric, name in METRICS.items():
            if summary := one.spread(row, metric):
                values = one.values[row, metric].values()
                numbers = [summary.mean, summary.std, min(values), max(values)]
                shown = [MISSING if x is None else f"{x:.2f}" for x in numbers]
                lines.append([f"{names[row]}: {name}", *shown, str(summary.n)])
    return Table(one.title, ["method", "mean", "deviation", "min", "max", "orders"], lines)


def mtil_sheet(records, protocol, methods=None):
    """Records -> Sheet: the three numbers of each stream, many orders, tasks, matrices."""
    found = streams(records, protocol, methods)
    shown = shown_streams(found)
    settings = shared_settings([row for one in found for row in one.grid.rows])
    tables = [_summary_table(one) for one in shown] + [_orders_table(one) for one in orders(found)]
    tables += [_summary_table(one) for one in found if one.ablation]
    tables += [_task_table(one, metric) for one in shown for metric in METRICS]
    tables += [_matrix_table(one, row) for one in shown for row in trained_rows(one)]
    return Sheet(
        name=protocol,
        heading=PROTOCOLS[protocol] + (f" ({settings})" if settings else ""),
        tables=tables,
        legend=[
            SEEDS_LEGEND,
            "Transfer: accuracy before a task's turn, mean over earlier sessions, then over all tasks but the first",
            "Average: mean over all sessions, then over tasks; Last: after the last session, mean over tasks",
            f"{BELOW}: below zero-shot CLIP's number of the same order and backbone; {MISSING}: not measured",
            *(["deviation, min, max: over orders, each the mean of its seeds"] if orders(found) else []),
        ],
        columns=[*CSV_HEAD, "order", "labels", "quantity", "after", "task", "mean", "std", "n"],
        lines=[line for one in found for line in _csv_lines(one)],
        files=[one.grid.files_of(row, [cell]) for one in found for row in one.grid.rows for cell in one.grid.columns],
    )


def _csv_lines(stream):
    grid, names = stream.grid, row_names(stream.grid.rows)
    return [
        [*csv_head(row, names), stream.order, stream.labels or "", cell.quantity, cell.after, cell.task]
        + csv_numbers(grid.cell(row, cell))
        for row in grid.rows
        for cell in grid.columns
    ]
