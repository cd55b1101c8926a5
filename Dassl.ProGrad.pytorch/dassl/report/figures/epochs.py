"""Loss and accuracy over epochs, from `history` in the results.json of training runs.

    "history": [{"epoch": 1, "loss": 2.31, "acc": 41.2, "val_accuracy": 38.0, ...}, ...]

Means over an epoch's batches, as the run printed them; null stands for what was not finite. Letters: P epochs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dassl.report.figures import drawing
from dassl.report.frame import summarise, summarise_average
from dassl.report.methods import NONE, Methods, plain_row, row_names, row_of, shared_settings, sort_rows, split_changes
from dassl.report.records import NoRuns, group_by, is_number, leave_out, most_alike, newest_each, select
from dassl.utils import get_logger

# Names in `history` -> (title, axis) of their panel, in drawn order.
QUANTITIES = {
    "loss": ("training loss", "loss that the method minimises"),
    "acc": ("training accuracy", drawing.AXIS_LABELS["accuracy"]),
    "agree": ("agreement with the teacher", "images (%)"),
    "val_accuracy": ("validation accuracy", drawing.AXIS_LABELS["accuracy"]),
}


class Epochs(NamedTuple):
    """Training runs of one family (a stage-1 method and what continues it) in one protocol."""

    protocol: str
    family: str
    rows: list  # in printed order
    epochs: dict  # {row: (P,)}
    runs: dict  # {quantity: {row: {data set: {seed: (P,)}}}}, of those that some run recorded, in drawn order


def epoch_curves(records: list[dict], methods: Methods = NONE) -> list[Epochs]:
    """Records of `load_results` -> Epochs of each family, as they come. NoRuns if no training run has a record."""
    training = select(records, kind="train")
    runs = [r for r in training if r.get("history")]
    for record in list(runs):
        history = record["history"]
        if not (isinstance(history, list) and all(isinstance(e, dict) and is_number(e.get("epoch")) for e in history)):
            leave_out(record["file"], f"history: expected a list of epochs, found {str(history)[:60]}")
            runs.remove(record)
    if not runs:
        raise NoRuns(
            f"No epochs figure: of {len(records)} results, {len(training)} are training runs and none of these "
            "recorded its epochs"
        )

    def family(record):
        """The printed name of the stage-1 method that a run's trainer is or continues."""
        trainer = methods.trainer(record)
        return record["protocol"], methods.label(methods.stage1.get(trainer, trainer))

    return [_one_family(protocol, name, group, methods) for (protocol, name), group in group_by(runs, family).items()]


def _one_family(protocol, family, records, methods):
    """Of each method the runs with the epochs that most of its runs have; the others share one warning. Runs of one
    method that differ in settings (a sweep) are rows named by what differs."""
    groups = {}
    for plain, group in group_by(records, lambda r: plain_row(r, methods)).items():
        settings = [r.get("lmc") or {} for r in group]
        keys = dict.fromkeys(k for s in settings for k in s)
        varied = [k for k in keys if len({str(s.get(k)) for s in settings}) > 1]
        for setting, record in zip(settings, group, strict=True):
            row = row_of(record, methods)
            if all(key.rpartition(".")[2] in varied for key in split_changes(record["preset"])[1]):
                row = row._replace(label=plain.label)  # the values themselves follow
            words = [f"{methods.settings.get(key, key.lower())} {setting.get(key)}" for key in varied]
            groups.setdefault(row._replace(label=", ".join([row.label, *words])), []).append(record)
    epochs, runs, others = {}, {quantity: {} for quantity in QUANTITIES}, []
    for row, group in groups.items():
        newest = newest_each(group, key=lambda r: (r["dataset"], r["subset"], r["seed"]), what="training runs")
        grid, alike, unlike = most_alike(newest, lambda r: tuple(entry["epoch"] for entry in r["history"]))
        others += unlike
        epochs[row] = np.array(grid)
        for record in alike:
            for quantity, by_row in runs.items():
                values = [entry.get(quantity) for entry in record["history"]]
                if any(map(is_number, values)):
                    by_seed = by_row.setdefault(row, {}).setdefault(record["dataset"], {})
                    by_seed[record["seed"]] = np.array([x if is_number(x) else np.nan for x in values], dtype=float)
    if others:
        get_logger().warning(f"Warning: {protocol}, {family}: left out for other epochs than most: {', '.join(others)}")
    runs = {quantity: by_row for quantity, by_row in runs.items() if by_row}
    return Epochs(protocol, family, sort_rows(epochs, methods), epochs, runs)


def epoch_figures(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """A figure for each Epochs with a quantity to draw."""
    return (_epoch_figure(one) for one in epoch_curves(records, methods) if one.runs)


def _epoch_figure(one):
    """A panel for each quantity, a line for each method: mean over data sets and seeds. CSV: a line for
    each method, data set (or "average"), quantity and epoch.

    Band: one deviation over seeds.
    """
    names, lines = row_names(one.rows), []
    averages = {
        quantity: {row: summarise_average(by_row[row]) for row in one.rows if row in by_row}
        for quantity, by_row in one.runs.items()
    }
    counts = sorted({summary.n for by_row in averages.values() for summary in by_row.values()})
    datasets = sorted({name for by_row in one.runs.values() for runs in by_row.values() for name in runs})
    seeds = f"{' to '.join(map(str, counts[:: len(counts) - 1 or 1]))} seeds, band: one standard deviation"
    terms = "losses of different methods have different terms"
    caption = "; ".join([drawing.mean_over(datasets), *([seeds] if counts[-1] > 1 else []), terms])
    title = f"{one.family} over epochs, {one.protocol}" + shared_settings(one.rows)
    size = 3.0 + 4.0 * len(one.runs), max(4.0, 1.4 + 0.5 * len(one.rows))
    figure = drawing.new_figure(*size, title, caption)
    panels = np.atleast_1d(figure.subplots(1, len(averages)))
    for axes, (quantity, by_row) in zip(panels, averages.items(), strict=True):
        for row, summary in by_row.items():
            look, epochs, runs = drawing.style(one.rows.index(row)), one.epochs[row], one.runs[quantity][row]
            mean = drawing.band(axes, epochs, summary, look["color"], 0.15)
            label = names[row] + (f" ({len(runs)} of {len(datasets)} data sets)" if len(runs) < len(datasets) else "")
            label, every = drawing.wrapped(label, 28, 3), max(1, len(epochs) // 8)
            axes.plot(epochs, mean, **look, lw=1.8, ms=5, markevery=every, label=label)
            for dataset, numbers in {"average": summary, **{d: summarise(runs[d]) for d in sorted(runs)}}.items():
                lines += drawing.curve_lines([names[row], dataset, quantity], epochs, numbers)
        title, ylabel = QUANTITIES[quantity]
        drawing.plain_axes(axes, ylabel, title, "epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    drawing.legend(figure)
    columns = ["method", "dataset", "quantity", "epoch", "mean", "std", "n"]
    return figure, f"epochs_{one.protocol}_{one.family}", columns, lines
