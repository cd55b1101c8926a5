"""Streams of tasks (MTIL, arXiv 2303.06628): what was measured, by method, order and label space.

results.json of an evaluated stream holds, beside the fields of every run, `tasks` (T names in the order of
learning), `order` (its name), `labels` (task-agnostic: "target" or "union"), `vote`, `scale`, `space`, the three
numbers as metrics, `ablation` (what a run left out or replaced, if that is its point), and

    "matrix": {"tasks": [T], "accuracy": [[T] * T], "transfer": [T], "average": [T], "last": [T]}

in percent, rows after each task, columns tested on each, null where there is nothing; `known`, [[T] * T], is what the
tasks' own experts reach where `matrix` is what the vote reaches. Training runs of single sessions have no matrix and
are no part of these tables.

Letters: T tasks.
"""

import itertools
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dassl.report import table
from dassl.report.frame import Grid, Row, fill
from dassl.report.methods import NONE, Methods, row_of, shared_settings, sort_rows
from dassl.report.records import NoRuns, group_by, leave_out, newest_each, numbers, select, without_repeats
from dassl.report.table import BELOW, MISSING, Cell, Table

MTIL, AGNOSTIC = "mtil", "mtil_agnostic"
PROTOCOLS = {
    MTIL: "Streams of tasks (MTIL), accuracy in percent",
    AGNOSTIC: "Streams of tasks, task unknown at test time, accuracy in percent",
}
METRICS = {"transfer": "Transfer", "average": "Average", "last": "Last"}
KNOWN = "known"
LABEL_SPACES = {"target": "classes of the tested task", "union": "all learned classes and the tested task's own"}
SPACES = {"full": "FT", "lora_factors": "LoRA", "lora_product": "LoRA, product"}
MANY = 2  # orders without a name, from which on their spread is shown and not each of them


class Column(NamedTuple):
    """A column of the grid: a mean over tasks, one task's number, or (`after`) one cell of the matrix."""

    quantity: str
    task: str = ""
    after: str = ""


@dataclass
class Stream(Grid):
    """The runs of one order and label space, by Columns."""

    labels: str = ""
    tasks: tuple = ()  # in that order
    named: bool = False  # whether the order has a name
    ablation: bool = False  # whether the rows are ablations of a method, not methods
    order: str = ""  # its name, else its tasks
    title: str = ""  # such as "order II, all learned classes and the tested task's own"

    @property
    def changing(self) -> list[Row]:
        """The methods whose matrix says something: all but zero-shot CLIP, whose rows are equal."""
        return [row for row in self.rows if row.trainer != self.methods.zero_shot]

    def shown(self, row: Row, *column: str) -> Cell:
        """One number to one decimal, without its deviation, as papers print tasks. column: of a Column."""
        summary = self.cell(row, Column(*column))
        return Cell(f"{summary.mean:.1f}" if summary else MISSING, summary.files)

    def seeds_note(self, rows: list[Row]) -> list[str]:
        """How many seeds are behind means that are shown without deviation, in one line."""
        counts = {row: max((len(self.by_seed(row, c)) for c in self.columns), default=0) for row in rows}
        if len(set(counts.values())) == 1:
            return [f"n: {counts[rows[0]]} seed{'s' if counts[rows[0]] != 1 else ''}."]
        return [f"n: {', '.join(f'{self.names[row]} {count}' for row, count in counts.items())}."]


def streams(records: list[dict], protocol: str, methods: Methods = NONE) -> list[Stream]:
    """From records of `load_results`, label spaces and orders as they come. NoRuns if there is none.

    protocol: a key of PROTOCOLS. A run whose matrix is damaged costs one warning and is left out.
    """
    evaluated = [r for r in select(records, kind="eval") if "matrix" in r]
    runs, lent = select(evaluated, protocol=protocol), []
    if protocol == AGNOSTIC:  # zero-shot CLIP knows no tasks: over a task's own classes a named task changes nothing
        orders = [r.get("tasks") for r in runs if r.get("labels") == "target"]
        lent = [{**r, "labels": "target"} for r in select(evaluated, protocol=MTIL) if r.get("tasks") in orders]
        lent = [r for r in lent if methods.trainer(r) == methods.zero_shot]

    fields, readable = ("labels", "tasks", "seed"), []
    for record in without_repeats(runs, lent, lambda r: (methods.trainer(r), *(str(r.get(f)) for f in fields))):
        try:
            readable.append({**record, "row": method_of(record, methods), "cells": _cells(record)})
        except (ValueError, TypeError) as error:
            leave_out(record["file"], error)
    if not readable:
        raise NoRuns(
            f"No {protocol} table: of {len(records)} results, {len(runs)} are evaluated streams of the protocol "
            f"{protocol!r} with their accuracy matrix" + (", all damaged" if runs else "")
        )

    def key(r):
        named = r.get("order") not in (None, ",".join(r["tasks"]))  # random orders are called by their tasks alone
        return r.get("labels") or "", tuple(r["tasks"]), named, bool(r.get("ablation"))

    grids = [_stream(place, group, methods) for place, group in group_by(readable, key).items()]
    return sorted(grids, key=lambda one: (one.ablation, one.labels, len(one.order), one.order))


def _stream(place, runs, methods):
    """A group of readable runs -> Stream."""
    labels, tasks, named, ablation = place
    kept = newest_each(runs, key=lambda r: (r["row"], r["seed"]), what="evaluated streams")
    grid = fill(kept, lambda r: {(r["row"], cell): value for cell, value in r["cells"].items()}, methods)
    if ablation:  # k = 2 before k = 10
        grid.rows.sort(key=lambda row: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", row.label)])
    columns = [
        *(Column(metric) for metric in (*METRICS, KNOWN)),
        *(Column(metric, task) for metric in METRICS for task in tasks),
        *(Column(q, task, after) for q in ("accuracy", KNOWN) for after in tasks for task in tasks),
    ]
    grid.columns = [column for column in columns if column in set(grid.columns)]
    order = str(runs[0]["order"]) if named else ", ".join(tasks)
    title = ", ".join(filter(None, [f"order {order}", LABEL_SPACES.get(labels, labels)]))
    return Stream(**vars(grid), labels=labels, tasks=tasks, named=named, ablation=ablation, order=order, title=title)


def _cells(record):
    """What a record measured -> {Column: percent}. ValueError if its matrix is none of its tasks, or a stated mean is
    not that of the numbers that it is over."""
    tasks, matrix, metrics = record.get("tasks"), record["matrix"], record["metrics"]
    if not tasks or len(set(tasks)) < len(tasks) or not isinstance(matrix, dict) or matrix.get("tasks") != tasks:
        raise ValueError("matrix: expected one of the run's own tasks, each once")
    size = len(tasks)
    stated = {m: numbers(matrix.get(m), f"matrix, {m}", size, percent=True, missing=True) for m in METRICS}
    squares = {"accuracy": matrix.get("accuracy")} | ({KNOWN: record[KNOWN]} if record.get(KNOWN) is not None else {})
    squares = {q: numbers(rows, q, size, size, percent=True, missing=True) for q, rows in squares.items()}
    accuracy = squares["accuracy"]
    means = {
        "transfer": np.array([accuracy[:k, k].mean() if k else np.nan for k in range(size)]),
        "average": accuracy.mean(axis=0),
        "last": accuracy[-1],
    }
    cells = {}
    for metric, values in stated.items():
        mean = stated[metric][metric == "transfer" :].mean() if size > (metric == "transfer") else np.nan
        shown = {Column(metric): (metrics.get(metric, np.nan), mean)}
        shown |= {Column(metric, task): pair for task, *pair in zip(tasks, values, means[metric], strict=True)}
        for column, (value, mean) in shown.items():
            if abs(value - mean) > 0.01:  # NaN where one of them is missing
                name = " of ".join(filter(None, column[:2]))
                raise ValueError(f"{name} {value:g} is not the mean {mean:.2f} of its accuracies")
            cells[column] = value
    for quantity, square in squares.items():
        rows = zip(tasks, square, strict=True)
        cells |= {Column(quantity, task, after): x for after, row in rows for task, x in zip(tasks, row, strict=True)}
    if KNOWN in squares:
        cells[Column(KNOWN)] = squares[KNOWN][-1].mean()
    return {column: float(value) for column, value in cells.items() if not np.isnan(value)}


def method_of(record: dict, methods: Methods) -> Row:
    """The Row of a record: its method with what is fused, how experts vote and how deltas are scaled.

    "ConDU (LoRA, paper vote)"; a scale is named unless it is the paper's l1, a vote without a name by its parts. An
    ablation is called what it says; zero-shot CLIP has none of all that, nor shots or a preset.
    """
    row = row_of(record, methods)
    if row.trainer == methods.zero_shot:
        return row._replace(label=methods.label(row.trainer), preset="", shots=None)
    space, vote, scale = (record.get(name) for name in ("space", "vote", "scale"))
    space = space.get("kind") if isinstance(space, dict) else space
    words = [SPACES.get(space, str(space))] if space else []
    label = str(record.get("ablation") or row.label)
    if vote and not record.get("ablation"):
        vote = vote if isinstance(vote, dict) else {"name": vote}
        with_clip = " and CLIP" if vote.get("include_pretrained") else ""
        temp = f" {vote.get('temp', 1):g}" if vote.get("weighting") == "minmax" else ""
        over = " of probabilities" if vote.get("space") == "probabilities" else ""
        parts = f"k {vote.get('k')}{with_clip} by {vote.get('weighting')}{temp}{over}"
        words.append(f"{vote['name']} vote" if vote.get("name") else parts)
    if scale and scale != "l1" and not record.get("ablation"):
        words.append(f"scale {scale}")
    return row._replace(label=f"{label} ({', '.join(words)})" if words else label)


def orders(grids: list[Stream]) -> list[tuple[str, Grid]]:
    """(title, Grid of METRICS by order, each the mean over seeds), one for each label space and set
    of tasks with two unnamed orders or more."""
    spreads = []
    for (labels, tasks), group in _by_tasks(one for one in grids if not one.named).items():
        scores: dict = {}
        for one, metric in itertools.product(group, METRICS):
            for row in (row for row in one.rows if one.by_seed(row, Column(metric))):
                scores.setdefault((row, metric), {})[one.tasks] = float(one.cell(row, Column(metric)).mean)
        methods = group[0].methods
        if rows := sort_rows((row for (row, _), by_order in scores.items() if len(by_order) >= MANY), methods):
            title = ", ".join(filter(None, [f"{len(group)} orders of {len(tasks)} tasks", LABEL_SPACES.get(labels)]))
            spreads.append((title, Grid(rows, [*METRICS], scores, {}, methods)))
    return spreads


def _by_tasks(grids):
    """Streams of methods by label space and tasks, whatever their order."""
    return group_by([one for one in grids if not one.ablation], lambda one: (one.labels, frozenset(one.tasks)))


def shown_streams(grids: list[Stream]) -> list[Stream]:
    """The Streams with tables and figures of their own: those with a name, and the others if they are few.

    Of many without a name, and none with one, it is the one with the most methods.
    """
    kept: list[Stream] = []
    for group in _by_tasks(grids).values():
        named = [one for one in group if one.named]
        most = max(group, key=lambda one: len(one.rows))
        kept += group if len(group) - len(named) < MANY else named or [most]
    return kept


def _summary_table(stream):
    """-> Table with columns method, Transfer, Average, Last, [Last with the task known], n."""
    quantities, notes = METRICS | ({KNOWN: "Last, task known"} if Column(KNOWN) in stream.columns else {}), []

    cells = {row: {q: stream.cell(row, Column(q)) for q in quantities} for row in stream.rows}
    for row, name in stream.names.items():
        gaps = " and no ".join(title for q, title in METRICS.items() if not cells[row][q])
        notes += table.row_notes(name, gaps and f"no {gaps}, the matrix lacks cells that count")
    title = f"{'Ablations' if stream.ablation else 'Transfer, Average, Last'}: {stream.title}"
    columns = quantities.values()
    return table.method_table(title, stream, stream.names, columns, cells.get, uncounted=[KNOWN], notes=notes)


def _task_table(stream, metric):
    """One metric by task, as papers print it -> Table with columns method, each task, mean."""
    rows = []
    for row, name in stream.names.items():
        rows.append([name, *(stream.shown(row, metric, task) for task in (*stream.tasks, ""))])
        if metric == "last" and stream.by_seed(row, Column(KNOWN)):
            known = [stream.shown(row, KNOWN, task, stream.tasks[-1]) for task in stream.tasks]
            rows.append([f"{name}, task known", *known, stream.shown(row, KNOWN)])
    title = f"{METRICS[metric]} by task: {stream.title}"
    return Table(title, ["method", *stream.tasks, "mean"], rows, stream.seeds_note(stream.rows))


def _matrix_table(stream, row):
    """One method's accuracy matrix -> Table; with a known expert's accuracy behind a stroke where there is one."""

    def cell(after, task):
        shown = stream.shown(row, "accuracy", task, after)
        known = stream.by_seed(row, Column(KNOWN, task, after))
        return Cell(f"{shown} / {stream.shown(row, KNOWN, task, after)}", shown.files) if known else shown

    lines = [[after, *(cell(after, task) for task in stream.tasks)] for after in stream.tasks]
    what = "vote / known expert" if stream.by_seed(row, Column(KNOWN)) else "accuracy"
    title = f"{stream.names[row]}, {what} after each task: {stream.title}"
    return Table(title, ["after", *stream.tasks], lines, stream.seeds_note([row]))


def _orders_table(title, grid):
    """-> Table with a line for each method and metric."""
    lines = []
    for (row, name), (metric, words) in itertools.product(grid.names.items(), METRICS.items()):
        if summary := grid.cell(row, metric):
            values = grid.by_seed(row, metric).values()
            numbers = [summary.mean, summary.std, min(values), max(values)]
            shown = [MISSING if x is None else f"{x:.2f}" for x in numbers]
            lines.append([f"{name}: {words}", *shown, str(summary.n)])
    return Table(title, ["method", "mean", "deviation", "min", "max", "orders"], lines)


def mtil_report(records: list[dict], protocol: str, methods: Methods = NONE) -> table.Report:
    """The three numbers of each stream, many orders, tasks, matrices."""
    grids = streams(records, protocol, methods)
    shown, spreads, lines = shown_streams(grids), orders(grids), []
    tables = [_summary_table(one) for one in shown] + [_orders_table(*spread) for spread in spreads]
    tables += [_summary_table(one) for one in grids if one.ablation]
    tables += [_task_table(one, metric) for one in shown for metric in METRICS]
    tables += [_matrix_table(one, row) for one in shown for row in one.changing]
    for stream in grids:
        for row, name in stream.names.items():
            keys = {c: (stream.order, stream.labels, c.quantity, c.after, c.task) for c in stream.columns}
            cells = {key: stream.cell(row, c) for c, key in keys.items()}
            lines += table.csv_lines(name, row, cells)
    return table.method_report(
        protocol,
        PROTOCOLS[protocol] + shared_settings([row for one in grids for row in one.rows]),
        tables,
        [
            "Transfer: accuracy before a task's turn, mean over earlier sessions, then over all tasks but the first",
            "Average: mean over all sessions, then over tasks; Last: after the last session, mean over tasks",
            f"{BELOW}: below zero-shot CLIP's number of the same order and backbone; {MISSING}: not measured",
            *(["deviation, min, max: over orders, each the mean of its seeds"] if spreads else []),
        ],
        ["order", "labels", "quantity", "after", "task"],
        lines,
        evaluations=False,
    )
