"""Figures of runs, a name each: paths, planes, curves over shots, settings and epochs, streams of tasks.

See `drawing` for how they look.
"""

from pathlib import Path

import numpy as np

from dassl.report import drawing
from dassl.report.curves import fewshot_figure, sweep_figures
from dassl.report.epochs import epoch_curves, epoch_figures
from dassl.report.fewshot import fewshot
from dassl.report.methods import NONE
from dassl.report.mtil_figures import heatmaps, order_figures, scatter_figures
from dassl.report.paths import PATH_FILE, QUANTITIES, families, load_paths
from dassl.report.planes import load_planes, plane_figures
from dassl.report.results import NoRuns
from dassl.report.stats import summarise, summarise_average
from dassl.report.sweeps import sweeps
from dassl.report.tables import to_csv
from dassl.report.tsne import SCATTER_FILE
from dassl.utils import check_availability
from dassl.utils.progress import progress

ARROW = " \N{RIGHTWARDS ARROW} "


def all_figures(folders, records, out, methods=NONE, names=None):
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
            found, reason = draw(folders, records, out, methods), ""
        except NoRuns as error:
            found, reason = [], f" ({error})"  # no such runs, as the tables say
        if names and not found:
            where = ", ".join(map(str, folders))
            raise NoRuns(f"No figure {name!r}: it needs {needs}; none below {where}{reason}")
        written += found
    return written


def card_figures(folders, out, methods):
    """What the path.json below `folders` hold: paths and planes -> Paths."""
    return path_figures(folders, out, methods) + plane_figures(load_planes(*folders), out, methods)


def path_figures(folders, out, methods=NONE):
    """A path curve per stage-2 method and space, from the path.json below `folders`, into `out` -> Paths."""
    written = []
    for curves in families(load_paths(*folders), methods):
        written += path_curve(curves, Path(out, f"{drawing.file_name(f'path_{curves.name}_{curves.space}')}.png"))
    return written


# By name, in the order of drawing: what a folder must hold, and (folders, records, out, methods) -> Paths, none or
# NoRuns without it.
FIGURES = {
    "path": (
        f"a {PATH_FILE} beside results.json, as stage-2 runs leave it",
        lambda folders, _, out, methods: path_figures(folders, out, methods),
    ),
    "plane": (
        f"a {PATH_FILE} with the plane through its solutions",
        lambda folders, _, out, methods: plane_figures(load_planes(*folders), out, methods),
    ),
    "fewshot": (
        "evaluations of the protocol 'fewshot'",
        lambda _, records, out, methods: fewshot_figure(fewshot(records, methods), out),
    ),
    "sweep": (
        "base-to-new evaluations of one method at several values of a single number among its settings",
        lambda _, records, out, methods: sweep_figures(sweeps(records, methods), out, methods),
    ),
    "epochs": (
        "training runs that recorded their epochs",
        lambda _, records, out, methods: epoch_figures(epoch_curves(records, methods), out),
    ),
    "heatmap": ("evaluated streams of tasks with their accuracy matrix", heatmaps),
    "orders": ("evaluated streams of the same tasks in several orders", order_figures),
    "tsne": (f"a {SCATTER_FILE}", scatter_figures),
}


def path_curve(curves, file):
    """Loss and accuracy on the path zero-shot -> ours -> fine-tuned, each subset -> [the PNG, its CSV].

    curves: PathCurves. Bold: average over data sets and seeds; band: one deviation over seeds; faint: one
    data set each; dotted: the direct line zero-shot -> fine-tuned, drawn over the same width.
    """
    figure = drawing.new_figure(9.2, 3.9, ARROW.join(curves.ends), _caption(curves))
    for axes, quantity in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
        _path_panel(axes, curves, quantity)
    return drawing.save(figure, file, path_numbers(curves))


def path_numbers(curves):
    """The figure's numbers -> CSV text: one line per path, data set (or "average"), subset, quantity and point."""
    lines = []
    for (subset, quantity), runs in curves.runs.items():
        summaries = {"average": summarise_average(runs)} | {d: summarise(runs[d]) for d in curves.datasets}
        for dataset, summary in summaries.items():
            lines += drawing.curve_lines(["through ours", dataset, subset, quantity], curves.t, summary)
        if curves.direct:
            direct = summarise_average(curves.direct[subset, quantity])
            lines += drawing.curve_lines(["direct", "average", subset, quantity], curves.direct_t, direct)
    return to_csv(["path", "dataset", "subset", "quantity", "t", "mean", "std", "n"], lines)


def _path_panel(axes, curves, quantity):
    """One panel: faint lines per data set, the average with its band, markers on the solutions."""
    places = [x for x in (0, 1, 2) if x in curves.t]
    solutions = [int(np.flatnonzero(curves.t == x)[0]) for x in places]
    ends = {}
    for subset in curves.subsets:
        look = drawing.SUBSET_STYLES[subset]
        if len(curves.datasets) > 1:
            for dataset in curves.datasets:
                mean = summarise(curves.runs[subset, quantity][dataset]).mean
                axes.plot(curves.t, mean, look["linestyle"], color=look["color"], lw=0.8, alpha=0.4)
        mean, std, *_ = summarise_average(curves.runs[subset, quantity])
        if std is not None:
            axes.fill_between(curves.t, mean - std, mean + std, color=look["color"], alpha=0.2, lw=0)
        axes.plot(curves.t, mean, **look, lw=2.2, ms=7, mec="white", mew=1, markevery=solutions)
        if curves.direct:
            direct = summarise_average(curves.direct[subset, quantity]).mean
            axes.plot(2 * curves.direct_t, direct, ":", color=look["color"], lw=1.6)
        ends[subset] = mean[-1]
    drawing.plain_axes(axes, drawing.AXIS_LABELS[quantity], quantity)
    axes.set_xticks(places, [drawing.wrapped(name, 24, 3) for name in curves.ends])
    axes.set_xlim(places[0] - 0.05, 2.05)
    axes.axvline(1, color="0.8", lw=0.8, zorder=0)
    _direct_labels(axes, ends)


def _direct_labels(axes, ends):
    """Names at the right end of the bold lines, at least 6 % of the height apart. ends: {subset: y}."""
    low, high = axes.get_ylim()
    places = sorted(ends.items(), key=lambda item: item[1])
    gap = places[-1][1] - places[0][1]
    shift = max(0.0, 0.06 * (high - low) - gap) / 2 if len(places) > 1 else 0.0
    for (subset, y), sign in zip(places, (-1, 1), strict=False):
        axes.annotate(
            subset, (2.05, y + sign * shift), xytext=(4, 0), textcoords="offset points", va="center",
            color=drawing.SUBSET_STYLES[subset]["color"], fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _caption(curves):
    """What is averaged, and what the card notes."""
    datasets, n = curves.datasets, summarise_average(curves.runs[curves.subsets[0], "loss"]).n
    averaged = [f"{len(datasets)} data sets"] if len(datasets) > 1 else []
    averaged += [f"{n} seeds"] if n > 1 else []
    parts = [f"bold: mean over {' and '.join(averaged)}"] if averaged else []
    if n > 1:
        parts.append("band: one standard deviation over seeds")
    if len(datasets) > 1:
        parts.append("faint: each data set")
    if curves.direct:
        parts.append("dotted: straight from zero-shot to fine-tuned")
    subject = f"{datasets[0]}, interpolated" if len(datasets) == 1 else "Interpolated"
    lines = ["; ".join([f"{subject}: {curves.space}", *parts]), curves.note]
    return "\n".join(filter(None, lines))
