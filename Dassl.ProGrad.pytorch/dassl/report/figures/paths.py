"""Figures of the path zero-shot -> ours -> fine-tuned of stage-2 runs, from their path.json."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dassl.report.figures import drawing
from dassl.report.frame import summarise, summarise_average
from dassl.report.methods import Methods, row_names, row_of
from dassl.report.protocols import paths
from dassl.report.protocols.paths import OTHERS, QUANTITIES, SPACES, families, load_paths
from dassl.report.records import read_all

ARROW = " \N{RIGHTWARDS ARROW} "
MINUS = "\N{MINUS SIGN}"
COLUMNS = ["path", "dataset", "subset", "quantity", "t", "mean", "std", "n"]
CHANGES = {"base": "base classes", "new": "new classes", "all": "all classes", OTHERS: "other data sets"}


def path_figures(folders: list, _: object, methods: Methods) -> Iterator[drawing.Drawn]:
    """Loss and accuracy on the path zero-shot -> ours -> fine-tuned, each subset, from the path.json below `folders`,
    for each stage-2 method and space.

    Bold: average over data sets and seeds; band: one deviation over seeds; faint: one data set each; dotted: the
    direct line zero-shot -> fine-tuned, drawn over the same width.
    """
    for curves in families(load_paths(*folders), methods):
        figure = drawing.new_figure(9.2, 3.9, ARROW.join(curves.ends), _caption(curves))
        for axes, quantity in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
            _path_panel(axes, curves, quantity)
        yield figure, f"path_{curves.name}_{curves.space}", COLUMNS, _numbers(curves)


def change_figures(folders: list, _: object, methods: Methods) -> Iterator[drawing.Drawn]:
    """Accuracy on the path between class vectors less zero-shot CLIP's, on base and new classes and on other data sets,
    for each stage-2 method whose cards have all of it.

    Average over data sets and seeds, band: one deviation over seeds. For half the width of a page.
    """
    for curves in families(load_paths(*folders), methods):
        if OTHERS not in curves.subsets or curves.space != SPACES[0] or curves.t[0]:
            continue
        runs = {
            key: {d: {seed: curve - curve[0] for seed, curve in by_seed.items()} for d, by_seed in by_dataset.items()}
            for key, by_dataset in curves.runs.items()
        }
        less = curves._replace(runs=runs, direct={})
        caption = f"{_averaged(less) or less.datasets[0]}\n{less.ends[0]}\n{less.others}"
        figure = drawing.new_figure(4.8, 3.7, "", caption)
        axes = figure.subplots()
        _path_panel(axes, less, "accuracy", CHANGES)
        drawing.plain_axes(axes, "", "accuracy less zero-shot CLIP's, in points")
        axes.axhline(0, color="0.5", lw=1, zorder=0)
        axes.set_xticks([0, 1, 2], ["zero-shot\nCLIP", f"ours:\n{drawing.wrapped(curves.name, 18, 2)}", "fine-tuned"])
        yield figure, f"change_{curves.name}", COLUMNS, _numbers(less)


def _numbers(curves):
    """The figure's numbers -> lines of a CSV, one per path, data set (or "average"), subset, quantity and point."""
    lines = []
    for (subset, quantity), runs in curves.runs.items():
        summaries = {"average": summarise_average(runs)} | {d: summarise(runs[d]) for d in curves.datasets}
        for dataset, summary in summaries.items():
            lines += drawing.curve_lines(["through ours", dataset, subset, quantity], curves.t, summary)
        if curves.direct:
            direct = summarise_average(curves.direct[subset, quantity])
            lines += drawing.curve_lines(["direct", "average", subset, quantity], curves.direct_t, direct)
    return lines


def _path_panel(axes, curves, quantity, names=None):
    """One panel: faint lines per data set, the average with its band, markers on the solutions.

    names: {subset: printed} for a small panel, with the numbers at ours and at the end instead of faint lines.
    """
    places = [x for x in (0, 1, 2) if x in curves.t]
    *_, ours, _ = solutions = [int(np.flatnonzero(curves.t == x)[0]) for x in places]
    at_ends, at_ours = {}, {}
    for subset in curves.subsets:
        look = drawing.SUBSET_STYLES[subset]
        if len(curves.datasets) > 1 and not names:
            for dataset in curves.datasets:
                mean = summarise(curves.runs[subset, quantity][dataset]).mean
                axes.plot(curves.t, mean, linestyle=look["linestyle"], color=look["color"], lw=0.8, alpha=0.4)
        mean = drawing.band(axes, curves.t, summarise_average(curves.runs[subset, quantity]), look["color"], 0.2)
        axes.plot(curves.t, mean, **look, lw=2.2, ms=7, mec="white", mew=1, markevery=solutions[bool(names) :])
        if curves.direct:
            direct = summarise_average(curves.direct[subset, quantity]).mean
            axes.plot(2 * curves.direct_t, direct, ":", color=look["color"], lw=1.6)
        side = 1 if mean[ours - 2] > mean[ours + 2] else -1  # where the curve is lower
        at_ours[subset] = (mean[ours], f"{mean[ours]:+.1f}", (5 * side, 9))
        at_ends[subset] = (mean[-1], f"{names[subset]}\n{mean[-1]:+.1f}" if names else subset, (4, 0))
    drawing.plain_axes(axes, drawing.AXIS_LABELS[quantity], quantity)
    axes.set_xticks(places, [drawing.wrapped(name, 24, 3) for name in curves.ends])
    axes.set_xlim(places[0] - 0.05, 2.05)
    axes.axvline(1, color="0.8", lw=0.8, zorder=0)
    _direct_labels(axes, 2.05, at_ends, 0.16 if names else 0.07)
    if names:
        _direct_labels(axes, 1, at_ours, 0.1)


def _direct_labels(axes, x, labels, gap):
    """Words beside the bold lines, at least `gap` of the height apart. labels: {subset: (y, words, points aside)}."""
    low, high = axes.get_ylim()
    step, place = gap * (high - low), -np.inf
    rising = sorted(labels.items(), key=lambda item: item[1])
    for above, (subset, (y, words, offset)) in zip(range(len(labels))[::-1], rising, strict=True):
        place = min(max(y, place + step), high - step * (above + 0.5))
        axes.annotate(
            words.replace("-", MINUS), (x, place), xytext=offset, textcoords="offset points", va="center",
            ha="left" if offset[0] > 0 else "right", color=drawing.SUBSET_STYLES[subset]["color"], fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip


def _caption(curves):
    """What is averaged, and what the card notes."""
    datasets, averaged = curves.datasets, _averaged(curves)
    parts = [
        f"{datasets[0]}, interpolated: {curves.space}" if len(datasets) == 1 else f"Interpolated: {curves.space}",
        averaged and f"bold: {averaged}",
        curves.seeds > 1 and "band: one standard deviation over seeds",
        len(datasets) > 1 and "faint: each data set",
        curves.direct and "dotted: straight from zero-shot to fine-tuned",
    ]
    return "\n".join(filter(None, ["; ".join(filter(None, parts)), curves.others, curves.note]))


def _averaged(curves):
    """ "mean over 10 data sets and 3 seeds"; "" of a single run."""
    counts = {"data sets": len(curves.datasets), "seeds": curves.seeds}
    over = " and ".join(f"{n} {what}" for what, n in counts.items() if n > 1)
    return over and f"mean over {over}"


def load_planes(*folders: str | Path) -> list[dict]:
    """Runs whose path.json has the plane through the three solutions (Garipov et al., arXiv 1802.10026) -> list of
    records: the run's own, with `plane`. A damaged one costs a warning and is left out.

        "plane": {"space": "features", "base": {"x": [X], "y": [Y], "loss": [[X] * Y], "accuracy": [[X] * Y],
                                                "points": {"zero_shot": {"x", "y", ...}, "ours": ..., ...}},
                  "new": {...}}

    X, Y: grid points along the plane's two orthonormal directions. Class vectors depend on the subset's names, so each
    subset has a plane of its own.
    """

    def read(file):
        card, record = paths.read_card(file)
        plane = card.get("plane")
        if not isinstance(plane, dict) or not any(subset in plane for subset in paths.SUBSETS):
            return None
        side = card if card.get("space") == plane.get("space") else card.get(plane.get("space"), {})
        template = str(side.get("zero_shot_template") or "")
        return {**record, "plane": _plane(plane) | {"template": template}, "file": file}

    return read_all(paths.PATH_FILE, folders, read, what="the plane in ")


def _plane(plane):
    """The plane with arrays for lists -> dict. ValueError, KeyError or TypeError if it is none."""
    subsets = {}
    for subset, raw in ((subset, plane[subset]) for subset in paths.SUBSETS if subset in plane):
        x, y = (paths.rising(raw[axis], f"{subset} {axis}") for axis in "xy")
        points = {name: point for name, point in raw["points"].items() if name in paths.SOLUTIONS}
        points = {name: (float(point["x"]), float(point["y"])) for name, point in points.items()}
        subsets[subset] = {"x": x, "y": y, "points": points, **paths.curves(raw, subset, len(y), len(x))}
    return {"space": str(plane.get("space", SPACES[0])), "subsets": subsets}


def plane_figures(folders: list, _: object, methods: Methods) -> Iterator[drawing.Drawn]:
    """A figure for each record of `load_planes`."""
    records = load_planes(*folders)
    names = row_names({row_of(r, methods) for r in records})
    return (plane_figure(r["plane"], f"{names[row_of(r, methods)]}, {r['dataset']}, seed {r['seed']}") for r in records)


def plane_figure(plane: dict, title: str) -> drawing.Drawn:
    """Contours of the loss on each subset, the solutions marked."""
    caption = f"{plane['space']}: orthonormal plane through the three solutions; levels are quantiles of the loss"
    if plane["template"]:
        caption += f"; zero-shot: {plane['template']}"
    count = len(plane["subsets"])
    flat = min(1.5, max(np.ptp(grid["y"]) / np.ptp(grid["x"]) for grid in plane["subsets"].values()))
    figure = drawing.new_figure(4.6 * count + 0.6, 1.5 + 3.2 * flat, title, caption)
    lines = []
    for axes, (subset, grid) in zip(np.atleast_1d(figure.subplots(1, count)), plane["subsets"].items(), strict=True):
        levels = np.unique(np.quantile(grid["loss"], np.linspace(0, 1, 13)))
        if len(levels) < 2:  # a flat loss
            levels = np.array([levels[0], levels[0] + 1e-6])
        filled = axes.contourf(grid["x"], grid["y"], grid["loss"], levels=levels, cmap="cividis")
        axes.contour(grid["x"], grid["y"], grid["loss"], levels=levels, colors="0.2", linewidths=0.4)
        figure.colorbar(filled, ax=axes, format="%.3g", label=drawing.AXIS_LABELS["loss"])
        for k, (name, place) in enumerate(grid["points"].items()):  # white on black, so that they show on any colour
            axes.plot(*place, drawing.MARKERS[k], color="white", mec="black", ms=9)
            axes.annotate(
                name.replace("_", "-"), place, xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8,
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
            )  # fmt: skip
        axes.set_title(subset, loc="left", fontsize=11)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        axes.ticklabel_format(scilimits=(-2, 4))
        for j, y in enumerate(grid["y"]):
            for i, x in enumerate(grid["x"]):
                lines.append([subset, f"{x:.6g}", f"{y:.6g}", *(f"{grid[q][j, i]:.6f}" for q in QUANTITIES)])
    return figure, f"plane_{title}_{plane['space']}", ["subset", "x", "y", *QUANTITIES], lines
