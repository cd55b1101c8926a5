"""Figures of runs, a name each: paths, planes, curves over shots, settings and epochs, streams of tasks.

See `drawing` for how they look.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dassl.report.figures import drawing
from dassl.report.figures.epochs import epoch_figures
from dassl.report.figures.mtil import heatmaps, order_figures, scatter_figures
from dassl.report.figures.paths import change_figures, path_figures, plane_figures
from dassl.report.figures.tsne import SCATTER_FILE
from dassl.report.methods import NONE, Methods
from dassl.report.protocols.base2new import OTHERS, base2new
from dassl.report.protocols.fewshot import fewshot
from dassl.report.protocols.paths import PATH_FILE
from dassl.report.protocols.sweeps import sweeps
from dassl.report.records import NoRuns
from dassl.report.table import csv_numbers
from dassl.utils import check_availability
from dassl.utils.progress import progress


def all_figures(
    folders: list, records: list[dict], out: Path, methods: Methods = NONE, names: list[str] | None = None
) -> list[Path]:
    """The named figures (default: every one for which there are runs), into `out` -> Paths.

    records: of `load_results`. UserError for a name that FIGURES lacks, NoRuns for one without runs.
    """
    written = []
    for name in names or ():
        check_availability(name, FIGURES, "--figure")
    for name, (needs, draw) in progress(FIGURES.items(), "drawing"):
        if names and name not in names:
            continue
        try:
            drawn = draw(folders, records, methods)
            files, reason = [file for parts in drawn for file in drawing.save(out, *parts)], ""
        except NoRuns as error:
            files, reason = [], f" ({error})"  # no such runs, as the tables say
        if names and not files:
            where = ", ".join(map(str, folders))
            raise NoRuns(f"No figure {name!r}: it needs {needs}; none below {where}{reason}")
        written += files
    return written


def fewshot_figure(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """Accuracy by shots, a line for each method, averaged over data sets.

    Bars: one deviation over seeds; level line: zero-shot CLIP.
    """
    grid = fewshot(records, methods)
    caption = f"{drawing.mean_over(grid.datasets)}; bars: one standard deviation over seeds"
    figure = drawing.new_figure(8.4, 4.4, "Accuracy by shots", caption)
    axes = figure.subplots()
    names = grid.names
    labels = {row: drawing.wrapped(name, 28, 3) for row, name in names.items()}
    trained = [row for row in grid.rows if row.trainer != methods.zero_shot]
    lines = []
    for row in grid.rows:
        points = [(k, s) for k, s in grid.on(row).items() if s]
        lines += [[names[row], k, *csv_numbers(s)] for k, s in points]
        if row in trained:
            _line(axes, points, labels[row], drawing.style(trained.index(row)))
        elif points:
            dashes = (0, (1, 1 + grid.rows.index(row)))  # several templates
            axes.axhline(points[0][1].mean, color="0.4", lw=1.4, ls=dashes, label=labels[row])
    if len(trained) and min(grid.shots) > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(grid.shots, [str(k) for k in grid.shots])
    axes.minorticks_off()
    drawing.plain_axes(axes, "accuracy (%)", xlabel="shots a class")
    drawing.legend(figure)
    yield figure, "fewshot", ["method", "shots", "mean", "std", "n"], lines


def sweep_figures(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """Base, new, H of averages and others by the values of each single numeric key that was swept."""
    for sweep in (sweep for sweep in sweeps(records, methods) if len(sweep.keys) == 1):
        values = [value for row in sweep.rows for value in sweep.values(row)]
        if not all(isinstance(value, int | float) for value in values):
            continue
        name = methods.settings.get(sweep.keys[0], sweep.keys[0].lower())
        caption = f"{drawing.mean_over(sweep.grid.datasets)}; bars: one standard deviation over seeds"
        figure = drawing.new_figure(6.8, 4.0, f"{sweep.name}: {name}", caption)
        axes = figure.subplots()
        lines, averages = [], [sweep.grid.average(row) for row in sweep.rows]
        for k, quantity in enumerate(("base", "new", "H of averages", *sweep.grid.of_others[:1])):
            points = [(place, average[quantity]) for place, average in enumerate(averages) if average[quantity]]
            _line(axes, points, quantity, drawing.style(k))
            lines += [[quantity, f"{values[place]:g}", *csv_numbers(s)] for place, s in points]
        axes.set_xticks(range(len(values)), [f"{x:g}" for x in values])  # even where they lie close
        drawing.plain_axes(axes, "accuracy (%)", xlabel=name)
        drawing.legend(figure)
        columns = ["quantity", name, "mean", "std", "n"]
        yield figure, f"sweep_{sweep.name}_{name}", columns, lines


def _line(axes, points, label, look):
    """Means with their deviations as bars. points: [(x, Summary)]."""
    errors = [s.std or 0 for _, s in points]
    axes.errorbar(
        [x for x, _ in points], [s.mean for _, s in points], errors, label=label, lw=1.8, ms=5, capsize=2, **look
    )


def others_figure(_: object, records: list[dict], methods: Methods) -> Iterator[drawing.Drawn]:
    """Base against others, a point a row, averaged over data sets."""
    grid = base2new(records, methods)
    averages = {row: grid.average(row) for row in grid.rows}
    points = {row: (a["base"], a[OTHERS]) for row, a in averages.items() if a["base"] and a.get(OTHERS)}
    if not points:
        return
    caption = f"{drawing.mean_over(grid.datasets)}; bars: one standard deviation over seeds; dotted: zero-shot CLIP"
    figure = drawing.new_figure(8.4, 4.6, "What training on base classes costs on other data sets", caption)
    axes, names, lines = figure.subplots(), grid.names, []
    for k, (row, (base, others)) in enumerate(points.items()):
        marker = drawing.style(k + k // len(drawing.MARKERS))["marker"]  # none has a colour twice
        look = drawing.style(k) | {"marker": marker, "linestyle": "none", "label": drawing.wrapped(names[row], 28, 3)}
        axes.errorbar(base.mean, others.mean, others.std or 0, base.std or 0, capsize=2, ms=7, **look)
        if row.trainer == methods.zero_shot:
            axes.axhline(others.mean, color="0.4", lw=1.2, ls=":")
        lines.append([names[row], *csv_numbers(base)[:2], *csv_numbers(others)])
    drawing.plain_axes(axes, "others: accuracy (%)", xlabel="base: accuracy (%)")
    drawing.legend(figure)
    columns = ["method", "base", "base_std", OTHERS, f"{OTHERS}_std", "n"]
    yield figure, "base_others", columns, lines


# By name, in the order of drawing: what a folder must hold, and (folders, records, methods) -> the figures, each with
# its title, and the columns and lines of its numbers; none or NoRuns without such runs.
FIGURES: dict[str, tuple[str, Callable[..., Iterable[drawing.Drawn]]]] = {
    "path": (f"a {PATH_FILE} beside results.json, as stage-2 runs leave it", path_figures),
    "change": (f"a {PATH_FILE} with curves of others and zero-shot CLIP", change_figures),
    "plane": (f"a {PATH_FILE} with the plane through its solutions", plane_figures),
    "fewshot": ("evaluations of the protocol 'fewshot'", fewshot_figure),
    "sweep": (
        "base-to-new evaluations of one method at several values of a single number among its settings",
        sweep_figures,
    ),
    "others": ("base-to-new evaluations that were made on other data sets too (TEST.OTHERS)", others_figure),
    "epochs": ("training runs that recorded their epochs", epoch_figures),
    "heatmap": ("evaluated streams of tasks with their accuracy matrix", heatmaps),
    "orders": ("evaluated streams of the same tasks in several orders", order_figures),
    "tsne": (f"a {SCATTER_FILE}", scatter_figures),
}
