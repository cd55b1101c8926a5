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

import re
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from dassl.report.frame import Grid, fill, without_repeats
from dassl.report.methods import NONE, Methods, row_names, row_of, shared_settings, sort_rows
from dassl.report.records import NoRuns, group_by, is_number, leave_out, newest_each, select
from dassl.report.stats import summarise
from dassl.report.table import BELOW, MISSING, Cell, Table, csv_lines, method_report, method_table, row_notes

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
class Stream:
    """The runs of one order and label space."""

    labels: str | None
    tasks: tuple  # in that order
    named: bool  # whether the order has a name
    ablation: bool  # whether the rows are ablations of a method, not methods
    order: str  # its name, else its tasks
    grid: Grid  # of Columns
    methods: Methods

    @property
    def title(self):
        """Such as "order II, all learned classes and the tested task's own"."""
        return ", ".join(filter(None, [f"order {self.order}", LABEL_SPACES.get(self.labels, self.labels)]))


def streams(records, protocol, methods=NONE):
    """Records of `load_results` -> list of Stream, label spaces and orders as they come. NoRuns if there is none.

    protocol: a key of PROTOCOLS. A run whose matrix is damaged costs one warning and is left out.
    """
    runs = []
    own = _with_matrix(records, protocol)
    for record in own + _lent(own, records, protocol, methods):
        try:
            method_of(record, methods)
            runs.append({**record, "cells": _cells(record)})
        except (ValueError, TypeError) as error:
            leave_out(record["file"], error)
    if not runs:
        raise NoRuns(
            f"No {protocol} table: of {len(records)} results, {len(own)} are evaluated streams of the protocol "
            f"{protocol!r} with their accuracy matrix" + (", all damaged" if own else "")
        )

    def key(r):
        named = r.get("order") not in (None, ",".join(r["tasks"]))  # random orders are called by their tasks alone
        return r.get("labels"), tuple(r["tasks"]), named, bool(r.get("ablation"))

    groups = group_by(runs, key)
    found = [Stream(*key, *_grid(key, group, methods), methods) for key, group in groups.items()]
    return sorted(found, key=lambda one: (one.ablation, one.labels or "", len(one.order), one.order))


def _with_matrix(records, protocol):
    return [r for r in select(records, protocol=protocol, kind="eval") if "matrix" in r]


def _lent(own, records, protocol, methods):
    """Zero-shot CLIP knows no tasks: over a task's own classes it is the same whether the task is named or not."""
    if protocol != AGNOSTIC:
        return []
    theirs = [{**r, "labels": "target"} for r in _with_matrix(records, MTIL) if methods.trainer(r) == methods.zero_shot]
    orders = [r.get("tasks") for r in own if r.get("labels") == "target"]
    lent = [r for r in theirs if r.get("tasks") in orders]
    kept = without_repeats(own, lent, lambda r: (methods.trainer(r), r.get("labels"), str(r.get("tasks")), r["seed"]))
    return kept[len(own) :]


def _grid(key, runs, methods):
    """Name of the order and Grid of a group of runs. key: label space, tasks, named or not, ablation or not."""
    _, tasks, named, ablation = key
    kept = newest_each(runs, key=lambda r: (method_of(r, methods), r["seed"]), what="evaluated streams")
    scores, files = fill(kept, lambda r: {(method_of(r, methods), cell): value for cell, value in r["cells"].items()})
    rows = sort_rows((method_of(r, methods) for r in kept), methods)
    if ablation:  # k = 2 before k = 10
        rows.sort(key=lambda row: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", row.label)])
    columns = [
        *(Column(metric) for metric in (*METRICS, KNOWN)),
        *(Column(metric, task) for metric in METRICS for task in tasks),
        *(Column(q, task, after) for q in ("accuracy", KNOWN) for after in tasks for task in tasks),
    ]
    taken = {column for _, column in scores}
    grid = Grid(rows, [column for column in columns if column in taken], scores, files)
    return str(runs[0]["order"]) if named else ", ".join(tasks), grid


def _cells(record):
    """What a record measured -> {Column: percent}. ValueError if its matrix is none of its tasks."""
    tasks, matrix = record.get("tasks"), record["matrix"]
    if not tasks:
        raise ValueError(f"tasks: expected a list of names, found {tasks!r}")
    if len(set(tasks)) < len(tasks) or not isinstance(matrix, dict) or matrix.get("tasks") != tasks:
        raise ValueError("matrix: expected one of the run's own tasks, each once")
    found = {Column(metric): record["metrics"][metric] for metric in METRICS if metric in record["metrics"]}
    for metric in METRICS:
        found |= {Column(metric, t): x for t, x in zip(tasks, _numbers(matrix, metric, len(tasks)), strict=True)}
    squares = {"accuracy": matrix} | ({KNOWN: record} if record.get(KNOWN) is not None else {})
    for quantity, holder in squares.items():
        rows = holder.get(quantity)
        if not isinstance(rows, list) or len(rows) != len(tasks):
            raise ValueError(f"{quantity}: expected {len(tasks)} rows")
        for i, after in enumerate(tasks):
            found |= dict(zip((Column(quantity, t, after) for t in tasks), _numbers(rows, i, len(tasks)), strict=True))
    _check_means(found, tasks)
    last = [found.get(Column(KNOWN, task, tasks[-1])) for task in tasks]
    if None not in last:
        found[Column(KNOWN)] = fmean(last)
    return {cell: value for cell, value in found.items() if value is not None}


def _check_means(found, tasks):
    """ValueError where a stated mean is not that of the numbers that it is over."""
    for metric in METRICS:
        over = {}
        for k, task in enumerate(tasks):
            sessions = {"transfer": tasks[:k], "average": tasks, "last": tasks[-1:]}[metric]
            over[Column(metric, task)] = [Column("accuracy", task, after) for after in sessions]
        over[Column(metric)] = list(over)[metric == "transfer" :]
        for column, behind in over.items():
            values = [found.get(column), *map(found.get, behind)]
            if behind and None not in values and abs(values[0] - fmean(values[1:])) > 0.01:
                name = " of ".join(filter(None, column[:2]))
                raise ValueError(f"{name} {values[0]:g} is not the mean {fmean(values[1:]):.2f} of its accuracies")


def _numbers(holder, key, length):
    """A list from a file: `length` finite numbers or nulls."""
    values = holder.get(key) if isinstance(holder, dict) else holder[key]
    fine = isinstance(values, list) and len(values) == length
    if not fine or not all(x is None or is_number(x) and 0 <= x <= 100 for x in values):
        raise ValueError(f"matrix, {key}: expected {length} numbers or null, in percent, found {str(values)[:60]}")
    return values


def method_of(record, methods):
    """The Row of a record: its method with what is fused, how experts vote and how deltas are scaled.

    "ConDU (LoRA, paper vote)"; a scale is named unless it is the paper's l1. An ablation is called what it says;
    zero-shot CLIP has none of all that, nor shots or a preset.
    """
    row = row_of(record, methods)
    if row.trainer == methods.zero_shot:
        return row._replace(label=methods.label(row.trainer), preset="", shots=None)
    space, vote, scale = (record.get(name) for name in ("space", "vote", "scale"))
    space = space.get("kind") if isinstance(space, dict) else space
    words = [SPACES.get(space, str(space))] if space else []
    label = str(record.get("ablation") or row.label)
    if not record.get("ablation"):
        words += [_vote_words(vote)] if vote else []
        words += [f"scale {scale}"] if scale and scale != "l1" else []
    return row._replace(label=f"{label} ({', '.join(words)})" if words else label)


def _vote_words(vote):
    """A vote by its name, or by its parts."""
    if not isinstance(vote, dict) or vote.get("name"):
        return f"{vote['name'] if isinstance(vote, dict) else vote} vote"
    with_clip = " and CLIP" if vote.get("include_pretrained") else ""
    over = " of probabilities" if vote.get("space") == "probabilities" else ""
    temp = f" {vote.get('temp', 1):g}" if vote.get("weighting") == "minmax" else ""
    return f"k {vote.get('k')}{with_clip} by {vote.get('weighting')}{temp}{over}"


class Orders(NamedTuple):
    """Streams of the same tasks in several orders. values: {(row, metric): {order: mean over seeds}}."""

    title: str
    rows: list
    values: dict


def orders(found):
    """Streams -> list of Orders, one for each label space and set of tasks with two unnamed orders or more."""
    result = []
    for (labels, tasks), group in _by_tasks(one for one in found if not one.named).items():
        rows = {row for one in group for row in one.grid.rows}
        values = {(row, metric): {} for row in rows for metric in METRICS}
        for (row, metric), by_order in values.items():
            means = {one.tasks: one.grid.cell(row, Column(metric)).mean for one in group}
            by_order.update({tasks: float(mean) for tasks, mean in means.items() if mean is not None})
        rows = [row for row in rows if max(len(values[row, metric]) for metric in METRICS) >= MANY]
        if rows:
            title = ", ".join(filter(None, [f"{len(group)} orders of {len(tasks)} tasks", LABEL_SPACES.get(labels)]))
            result.append(Orders(title, sort_rows(rows, group[0].methods), values))
    return result


def _by_tasks(found):
    """Streams of methods by label space and tasks, whatever their order."""
    return group_by([one for one in found if not one.ablation], lambda one: (one.labels, frozenset(one.tasks)))


def shown_streams(found):
    """The Streams with tables and figures of their own: those with a name, and the others if they are few.

    Of many without a name, and none with one, it is the one with the most methods.
    """
    kept = []
    for group in _by_tasks(found).values():
        named = [one for one in group if one.named]
        most = max(group, key=lambda one: len(one.grid.rows))
        kept += group if len(group) - len(named) < MANY else named or [most]
    return kept


def trained_rows(stream):
    """The methods whose matrix says something: all but zero-shot CLIP, whose rows are equal."""
    return [row for row in stream.grid.rows if row.trainer != stream.methods.zero_shot]


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
            values = one.values[row, metric].values()
            if summary := summarise(one.values[row, metric]):
                numbers = [summary.mean, summary.std, min(values), max(values)]
                shown = [MISSING if x is None else f"{x:.2f}" for x in numbers]
                lines.append([f"{name}: {title}", *shown, str(summary.n)])
    return Table(one.title, ["method", "mean", "deviation", "min", "max", "orders"], lines)


def mtil_report(records, protocol, methods=NONE):
    """Records -> Report: the three numbers of each stream, many orders, tasks, matrices."""
    found = streams(records, protocol, methods)
    shown, spreads = shown_streams(found), orders(found)
    tables = [_summary_table(one) for one in shown] + [_orders_table(one) for one in spreads]
    tables += [_summary_table(one) for one in found if one.ablation]
    tables += [_task_table(one, metric) for one in shown for metric in METRICS]
    tables += [_matrix_table(one, row) for one in shown for row in trained_rows(one)]
    return method_report(
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
