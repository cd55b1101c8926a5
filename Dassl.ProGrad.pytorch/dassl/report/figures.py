"""Figures for print: colours that colour-blind readers tell apart, lines and markers that survive greyscale.

Each figure is a PNG at 150 dpi with its numbers beside it as CSV. Colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/). matplotlib is imported when a figure is drawn, and never opens a window.
"""

import re
import textwrap
from pathlib import Path

import numpy as np

from dassl.report.methods import Methods
from dassl.report.paths import QUANTITIES, SUBSETS, families, load_paths
from dassl.report.tables import to_csv
from dassl.utils import atomic_write, digest

DPI = 150
STYLES = {
    "base": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "new": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
}
AXIS_LABELS = {"loss": "cross-entropy (nats)", "accuracy": "accuracy (%)"}


def path_figures(folders, out, methods=None):
    """A path curve per stage-2 method and space, from the path.json below `folders`, into `out` -> Paths."""
    written = []
    for curves in families(load_paths(*folders), methods or Methods()):
        written += path_curve(curves, Path(out, f"{_file_name(f'path_{curves.name}_{curves.space}')}.png"))
    return written


def _file_name(title):
    """A title as a file name without ending; beyond 100 characters (disks take 255) a digest ends it."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", title).strip("_")
    return name if len(name) <= 100 else f"{name[:90]}_{digest(title)[:8]}"


def path_curve(curves, file):
    """Loss and accuracy on the path zero-shot -> ours -> fine-tuned, base and new -> [the PNG, its CSV].

    curves: PathCurves. Bold: average over data sets and seeds; band: one deviation over seeds; faint: one
    data set each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = Path(file)
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
        _path_panel(axes, curves, quantity)
    title = "zero-shot \N{RIGHTWARDS ARROW} " + curves.name + " \N{RIGHTWARDS ARROW} fine-tuned"
    figure.suptitle(_wrapped(title, 90, 2), fontsize=12, x=0.01, ha="left")
    figure.supxlabel(_caption(curves), fontsize=8, color="0.35", x=0.01, ha="left")
    with atomic_write(file) as stream:
        figure.savefig(stream, format="png", dpi=DPI)
    table = file.with_suffix(".csv")
    with atomic_write(table, "w", encoding="utf-8", newline="") as stream:
        stream.write(path_numbers(curves))
    return [file, table]


def path_numbers(curves):
    """The figure's numbers -> CSV text: one line per data set (or "average"), subset, quantity and point."""
    lines = []
    for subset in SUBSETS:
        for quantity in QUANTITIES:
            summaries = {"average": curves.average(subset, quantity)}
            summaries |= {d: curves.dataset(d, subset, quantity) for d in curves.datasets}
            for dataset, (mean, std, n) in summaries.items():
                for k, t in enumerate(curves.t):
                    deviation = "" if std is None else f"{std[k]:.6f}"
                    lines.append([dataset, subset, quantity, f"{t:g}", f"{mean[k]:.6f}", deviation, n])
    return to_csv(["dataset", "subset", "quantity", "t", "mean", "std", "n"], lines)


def _path_panel(axes, curves, quantity):
    """One panel: faint lines per data set, the average with its band, markers on the three solutions."""
    solutions = [int(np.flatnonzero(curves.t == x)[0]) for x in (0, 1, 2)]
    ends = {}
    for subset in SUBSETS:
        style = STYLES[subset]
        if len(curves.datasets) > 1:
            for dataset in curves.datasets:
                mean = curves.dataset(dataset, subset, quantity).mean
                axes.plot(curves.t, mean, style["linestyle"], color=style["color"], lw=0.8, alpha=0.4)
        mean, std, _ = curves.average(subset, quantity)
        if std is not None:
            axes.fill_between(curves.t, mean - std, mean + std, color=style["color"], alpha=0.2, lw=0)
        axes.plot(curves.t, mean, **style, lw=2.2, ms=7, mec="white", mew=1, markevery=solutions)
        ends[subset] = mean[-1]
    axes.set_title(quantity, loc="left", fontsize=11)
    axes.set_ylabel(AXIS_LABELS[quantity])
    axes.set_xticks([0, 1, 2], ["zero-shot", _wrapped(curves.name, 24, 3), "fine-tuned"])
    axes.set_xlim(-0.05, 2.05)
    axes.axvline(1, color="0.8", lw=0.8, zorder=0)
    axes.grid(axis="y", color="0.92", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _direct_labels(axes, ends)


def _wrapped(text, width, lines):
    """Text in at most so many lines, so that a long name cannot push the panels out of the figure."""
    return textwrap.fill(text, width, max_lines=lines, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def _direct_labels(axes, ends):
    """Names at the right end of the bold lines, at least 6 % of the height apart. ends: {subset: y}."""
    low, high = axes.get_ylim()
    apart = 0.06 * (high - low)
    (lower, y0), (upper, y1) = sorted(ends.items(), key=lambda item: item[1])
    shift = max(0.0, apart - (y1 - y0)) / 2
    for subset, y in ((lower, y0 - shift), (upper, y1 + shift)):
        axes.annotate(
            subset, (2.05, y), xytext=(4, 0), textcoords="offset points", va="center",
            color=STYLES[subset]["color"], fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _caption(curves):
    """What is averaged, in one line."""
    datasets, n = curves.datasets, curves.average("base", "loss").n
    averaged = [f"{len(datasets)} data sets"] if len(datasets) > 1 else []
    averaged += [f"{n} seeds"] if n > 1 else []
    parts = [f"bold: mean over {' and '.join(averaged)}"] if averaged else []
    if n > 1:
        parts.append("band: one standard deviation over seeds")
    if len(datasets) > 1:
        parts.append("faint: each data set")
    subject = f"{datasets[0]}, interpolated" if len(datasets) == 1 else "Interpolated"
    return "; ".join([f"{subject}: {curves.space}", *parts])
