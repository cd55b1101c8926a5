"""Curves over a number: accuracy by shots, and a sweep over one setting."""

from pathlib import Path

from dassl.report.drawing import file_name, legend, new_figure, plain_axes, save, style, wrapped
from dassl.report.methods import row_names
from dassl.report.tables import csv_numbers, to_csv


def fewshot_figure(found, folder):
    """Accuracy by shots, a line for each method, averaged over data sets -> [PNG, CSV].

    found: FewShot. Bars: one deviation over seeds; level line: zero-shot CLIP.
    """
    count = len(found.datasets)
    over = f"mean over {count} data sets" if count > 1 else found.datasets[0]
    figure = new_figure(8.4, 4.4, "Accuracy by shots", f"{over}; bars: one standard deviation over seeds")
    axes = figure.subplots()
    names = row_names(found.grid.rows)
    trained = [row for row in found.grid.rows if row.trainer != found.methods.zero_shot]
    lines = []
    for row in found.grid.rows:
        points = [(k, s) for k, s in found.cells(row).items() if s]
        lines += [[names[row], k, *csv_numbers(s)] for k, s in points]
        if row not in trained:
            if points:
                dashes = (0, (1, 1 + found.grid.rows.index(row)))  # several templates
                axes.axhline(points[0][1].mean, color="0.4", lw=1.4, ls=dashes, label=wrapped(names[row], 28, 3))
            continue
        _line(axes, points, wrapped(names[row], 28, 3), style(trained.index(row)))
    if len(trained) and min(found.shots) > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(found.shots, [str(k) for k in found.shots])
    axes.minorticks_off()
    axes.set_xlabel("shots a class")
    plain_axes(axes, "accuracy (%)")
    legend(figure)
    return save(figure, Path(folder, "fewshot.png"), to_csv(["method", "shots", "mean", "std", "n"], lines))


def sweep_figures(found, folder, methods):
    """Base, new and H of averages over each single numeric key that was swept -> [PNG, CSV, ...]."""
    written = []
    for sweep in found:
        if len(sweep.keys) != 1:
            continue
        values = [dict(row.setting)[sweep.keys[0]] for row in sweep.rows]
        if all(isinstance(value, int | float) for value in values):
            name = methods.settings.get(sweep.keys[0], sweep.keys[0].lower())
            written += _sweep_figure(sweep, values, name, folder)
    return written


def _sweep_figure(sweep, values, name, folder):
    count = len(sweep.found.datasets)
    over = f"mean over {count} data sets" if count > 1 else sweep.found.datasets[0]
    figure = new_figure(6.8, 4.0, f"{sweep.name}: {name}", f"{over}; bars: one standard deviation over seeds")
    axes = figure.subplots()
    lines, averages = [], [sweep.found.average(row) for row in sweep.rows]
    for k, quantity in enumerate(("base", "new", "H of averages")):
        points = [(place, average[quantity]) for place, average in enumerate(averages) if average[quantity]]
        _line(axes, points, quantity, style(k))
        lines += [[quantity, f"{values[place]:g}", *csv_numbers(s)] for place, s in points]
    axes.set_xticks(
        range(len(values)), [f"{x:g}" for x in values]
    )  # even where they lie close
    axes.set_xlabel(name)
    plain_axes(axes, "accuracy (%)")
    legend(figure)
    file = Path(folder, f"{file_name(f'sweep_{sweep.name}_{name}')}.png")
    return save(figure, file, to_csv(["quantity", name, "mean", "std", "n"], lines))


def _line(axes, points, label, look):
    """Means with their deviations as bars. points: [(x, Summary)]."""
    errors = [s.std or 0 for _, s in points]
    axes.errorbar(
        [x for x, _ in points], [s.mean for _, s in points], errors, label=label, lw=1.8, ms=5, capsize=2, **look
    )
