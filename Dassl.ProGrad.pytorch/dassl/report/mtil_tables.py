"""Tables of streams of tasks: Transfer, Average, Last; over many orders; ablations; by task; accuracy matrices.

Tables of the three numbers have deviations; those by task are means alone, to one decimal, as papers print them.
"""

from dassl.report.methods import NONE, row_names, shared_settings
from dassl.report.mtil import KNOWN, METRICS, PROTOCOLS, Column, orders, shown_streams, streams, trained_rows
from dassl.report.sheet import csv_lines, method_sheet, method_table, row_notes
from dassl.report.tables import BELOW, MISSING, Cell, Table


def _one(stream, row, *column):
    """One number to one decimal, without its deviation, as papers print tasks -> Cell."""
    summary = stream.grid.cell(row, Column(*column))
    return Cell(f"{summary.mean:.1f}" if summary else MISSING, summary.files)


def _summary_table(stream):
    """-> Table with columns method, Transfer, Average, Last, [Last with the task known], n."""
    grid, names, notes = stream.grid, row_names(stream.grid.rows), []
    quantities = METRICS | ({KNOWN: "Last, task known"} if Column(KNOWN) in grid.columns else {})

    def cells(row):
        return {q: grid.cell(row, Column(q)) for q in quantities}

    for row, name in names.items():
        gaps = " and no ".join(title for q, title in METRICS.items() if not cells(row)[q])
        notes += row_notes(name, gaps and f"no {gaps}, the matrix lacks cells that count")
    title = f"{'Ablations' if stream.ablation else 'Transfer, Average, Last'}: {stream.title}"
    columns = quantities.values()
    return method_table(title, names, columns, cells, stream.methods, uncounted=[KNOWN], notes=notes)


def _task_table(stream, metric):
    """One metric by task, as papers print it -> Table with columns method, each task, mean."""
    rows = []
    for row, name in row_names(stream.grid.rows).items():
        rows.append([name, *(_one(stream, row, metric, task) for task in (*stream.tasks, ""))])
        if metric == "last" and stream.grid.by_seed(row, Column(KNOWN)):
            known = [_one(stream, row, KNOWN, task, stream.tasks[-1]) for task in stream.tasks]
            rows.append([f"{name}, task known", *known, _one(stream, row, KNOWN)])
    title = f"{METRICS[metric]} by task: {stream.title}"
    return Table(title, ["method", *stream.tasks, "mean"], rows, _seeds_note(stream, stream.grid.rows))


def _seeds_note(stream, rows):
    """How many seeds are behind means that are shown without deviation -> list of one line."""
    counts = {row: max((len(stream.grid.by_seed(row, c)) for c in stream.grid.columns), default=0) for row in rows}
    if len(set(counts.values())) == 1:
        return [f"n: {counts[rows[0]]} seed{'s' if counts[rows[0]] != 1 else ''}."]
    names = row_names(stream.grid.rows)
    return [f"n: {', '.join(f'{names[row]} {count}' for row, count in counts.items())}."]


def _matrix_table(stream, row):
    """One method's accuracy matrix -> Table; with a known expert's accuracy behind a stroke where there is one."""

    def cell(after, task):
        shown = _one(stream, row, "accuracy", task, after)
        known = stream.grid.by_seed(row, Column(KNOWN, task, after))
        return Cell(f"{shown} / {_one(stream, row, KNOWN, task, after)}", shown.files) if known else shown

    lines = [[after, *(cell(after, task) for task in stream.tasks)] for after in stream.tasks]
    what = "vote / known expert" if stream.grid.by_seed(row, Column(KNOWN)) else "accuracy"
    title = f"{row_names(stream.grid.rows)[row]}, {what} after each task: {stream.title}"
    return Table(title, ["after", *stream.tasks], lines, _seeds_note(stream, [row]))


def _orders_table(one):
    """-> Table with a line for each method and metric."""
    lines = []
    for row, name in row_names(one.rows).items():
        for metric, title in METRICS.items():
            if summary := one.spread(row, metric):
                values = one.values[row, metric].values()
                numbers = [summary.mean, summary.std, min(values), max(values)]
                shown = [MISSING if x is None else f"{x:.2f}" for x in numbers]
                lines.append([f"{name}: {title}", *shown, str(summary.n)])
    return Table(one.title, ["method", "mean", "deviation", "min", "max", "orders"], lines)


def mtil_sheet(records, protocol, methods=NONE):
    """Records -> Sheet: the three numbers of each stream, many orders, tasks, matrices."""
    found = streams(records, protocol, methods)
    shown, spreads = shown_streams(found), orders(found)
    tables = [_summary_table(one) for one in shown] + [_orders_table(one) for one in spreads]
    tables += [_summary_table(one) for one in found if one.ablation]
    tables += [_task_table(one, metric) for one in shown for metric in METRICS]
    tables += [_matrix_table(one, row) for one in shown for row in trained_rows(one)]
    return method_sheet(
        protocol,
        PROTOCOLS[protocol] + shared_settings([row for one in found for row in one.grid.rows]),
        tables,
        [
            "Transfer: accuracy before a task's turn, mean over earlier sessions, then over all tasks but the first",
            "Average: mean over all sessions, then over tasks; Last: after the last session, mean over tasks",
            f"{BELOW}: below zero-shot CLIP's number of the same order and backbone; {MISSING}: not measured",
            *(["deviation, min, max: over orders, each the mean of its seeds"] if spreads else []),
        ],
        ["order", "labels", "quantity", "after", "task"],
        [line for one in found for line in _csv_lines(one)],
        evaluations=False,
    )


def _csv_lines(stream):
    head, grid = (stream.order, stream.labels or ""), stream.grid

    def cells(row):
        return {(*head, c.quantity, c.after, c.task): grid.cell(row, c) for c in grid.columns}

    return csv_lines(row_names(grid.rows), cells)
