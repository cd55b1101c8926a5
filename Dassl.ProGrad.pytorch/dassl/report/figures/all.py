"""Figures of runs, a name each: paths, planes, curves over shots, settings and epochs, streams of tasks.

See `drawing` for how they look.
"""

from pathlib import Path

import numpy as np

from dassl.report.figures import drawing
from dassl.report.figures.epochs import epoch_curves, epoch_figures
from dassl.report.figures.mtil import heatmaps, order_figures, scatter_figures
from dassl.report.figures.paths import change_figures, path_figures
from dassl.report.figures.tsne import SCATTER_FILE
from dassl.report.methods import NONE, row_names, row_of
from dassl.report.protocols.base2new import OTHERS, base2new
from dassl.report.protocols.fewshot import fewshot
from dassl.report.protocols.paths import PATH_FILE, QUANTITIES, SOLUTIONS, SPACES, SUBSETS, numbers, read_card
from dassl.report.protocols.sweeps import sweeps
from dassl.report.records import NoRuns, read_all
from dassl.report.table import csv_numbers, to_csv
from dassl.utils import check_availability
from dassl.utils.progress import progress


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
    paths = path_figures(folders, out, methods) + change_figures(folders, out, methods)
    return paths + plane_figures(load_planes(*folders), out, methods)


# By name, in the order of drawing: what a folder must hold, and (folders, records, out, methods) -> Paths, none or
# NoRuns without it.
FIGURES = {
    "path": (
        f"a {PATH_FILE} beside results.json, as stage-2 runs leave it",
        lambda folders, _, out, methods: path_figures(folders, out, methods),
    ),
    "change": (
        f"a {PATH_FILE} with curves of others and zero-shot CLIP",
        lambda folders, _, out, methods: change_figures(folders, out, methods),
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
    "others": (
        "base-to-new evaluations that were made on other data sets too (TEST.OTHERS)",
        lambda _, records, out, methods: others_figure(base2new(records, methods), out),
    ),
    "epochs": (
        "training runs that recorded their epochs",
        lambda _, records, out, methods: epoch_figures(epoch_curves(records, methods), out),
    ),
    "heatmap": ("evaluated streams of tasks with their accuracy matrix", heatmaps),
    "orders": ("evaluated streams of the same tasks in several orders", order_figures),
    "tsne": (f"a {SCATTER_FILE}", scatter_figures),
}


def fewshot_figure(grid, folder):
    """Accuracy by shots, a line for each method, averaged over data sets -> [PNG, CSV].

    grid: FewShot. Bars: one deviation over seeds; level line: zero-shot CLIP.
    """
    caption = f"{drawing.mean_over(grid.datasets)}; bars: one standard deviation over seeds"
    figure = drawing.new_figure(8.4, 4.4, "Accuracy by shots", caption)
    axes = figure.subplots()
    names = grid.names
    labels = {row: drawing.wrapped(name, 28, 3) for row, name in names.items()}
    trained = [row for row in grid.rows if row.trainer != grid.methods.zero_shot]
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
    axes.set_xlabel("shots a class")
    drawing.plain_axes(axes, "accuracy (%)")
    drawing.legend(figure)
    return drawing.save(figure, Path(folder, "fewshot.png"), to_csv(["method", "shots", "mean", "std", "n"], lines))


def sweep_figures(found, folder, methods):
    """Base, new, H of averages and others over each single numeric key that was swept -> [PNG, CSV, ...]."""
    written = []
    for sweep in (sweep for sweep in found if len(sweep.keys) == 1):
        values = [value for row in sweep.rows for value in sweep.values(row)]
        if all(isinstance(value, int | float) for value in values):
            name = methods.settings.get(sweep.keys[0], sweep.keys[0].lower())
            written += _sweep_figure(sweep, values, name, folder)
    return written


def _sweep_figure(sweep, values, name, folder):
    caption = f"{drawing.mean_over(sweep.grid.datasets)}; bars: one standard deviation over seeds"
    figure = drawing.new_figure(6.8, 4.0, f"{sweep.name}: {name}", caption)
    axes = figure.subplots()
    lines, averages = [], [sweep.grid.average(row) for row in sweep.rows]
    for k, quantity in enumerate(("base", "new", "H of averages", *sweep.grid.of_others[:1])):
        points = [(place, average[quantity]) for place, average in enumerate(averages) if average[quantity]]
        _line(axes, points, quantity, drawing.style(k))
        lines += [[quantity, f"{values[place]:g}", *csv_numbers(s)] for place, s in points]
    axes.set_xticks(range(len(values)), [f"{x:g}" for x in values])  # even where they lie close
    axes.set_xlabel(name)
    drawing.plain_axes(axes, "accuracy (%)")
    drawing.legend(figure)
    file = Path(folder, f"{drawing.file_name(f'sweep_{sweep.name}_{name}')}.png")
    return drawing.save(figure, file, to_csv(["quantity", name, "mean", "std", "n"], lines))


def _line(axes, points, label, look):
    """Means with their deviations as bars. points: [(x, Summary)]."""
    errors = [s.std or 0 for _, s in points]
    axes.errorbar(
        [x for x, _ in points], [s.mean for _, s in points], errors, label=label, lw=1.8, ms=5, capsize=2, **look
    )


def others_figure(grid, folder):
    """Base against others, a point a row, averaged over data sets -> [PNG, CSV]. grid: Base2New."""
    averages = {row: grid.average(row) for row in grid.rows}
    points = {row: (a["base"], a[OTHERS]) for row, a in averages.items() if a["base"] and a.get(OTHERS)}
    if not points:
        return []
    caption = f"{drawing.mean_over(grid.datasets)}; bars: one standard deviation over seeds; dotted: zero-shot CLIP"
    figure = drawing.new_figure(8.4, 4.6, "What training on base classes costs on other data sets", caption)
    axes, names, lines = figure.subplots(), grid.names, []
    for k, (row, (base, others)) in enumerate(points.items()):
        marker = drawing.style(k + k // len(drawing.MARKERS))["marker"]  # none has a colour twice
        look = drawing.style(k) | {"marker": marker, "linestyle": "none", "label": drawing.wrapped(names[row], 28, 3)}
        axes.errorbar(base.mean, others.mean, others.std or 0, base.std or 0, capsize=2, ms=7, **look)
        if row.trainer == grid.methods.zero_shot:
            axes.axhline(others.mean, color="0.4", lw=1.2, ls=":")
        lines.append([names[row], *csv_numbers(base)[:2], *csv_numbers(others)])
    axes.set_xlabel("base: accuracy (%)")
    drawing.plain_axes(axes, "others: accuracy (%)")
    drawing.legend(figure)
    numbers = to_csv(["method", "base", "base_std", OTHERS, f"{OTHERS}_std", "n"], lines)
    return drawing.save(figure, Path(folder, "base_others.png"), numbers)


def load_planes(*folders):
    """Runs whose path.json has the plane through the three solutions (Garipov et al., arXiv 1802.10026) -> list of
    records: the run's own, with `plane`. A damaged one costs a warning and is left out.

        "plane": {"space": "features", "base": {"x": [X], "y": [Y], "loss": [[X] * Y], "accuracy": [[X] * Y],
                                                "points": {"zero_shot": {"x", "y", ...}, "ours": ..., ...}},
                  "new": {...}}

    X, Y: grid points along the plane's two orthonormal directions. Class vectors depend on the subset's names, so each
    subset has a plane of its own.
    """
    return read_all(PATH_FILE, folders, _read, what="the plane in ")


def _read(file):
    """A path.json -> record, or None without a plane."""
    card, record = read_card(file)
    plane = card.get("plane")
    if not isinstance(plane, dict) or not any(subset in plane for subset in SUBSETS):
        return None
    own = card if card.get("space") == plane.get("space") else card.get(plane.get("space"), {})
    plane = _checked(plane) | {"template": str(own.get("zero_shot_template") or "")}
    return {**record, "plane": plane, "file": file}


def _checked(plane):
    """The plane with arrays for lists -> dict. ValueError, KeyError or TypeError if it is none."""
    found = {"space": str(plane.get("space", SPACES[0])), "subsets": {}}
    for subset in SUBSETS:
        if subset not in plane:
            continue
        raw = plane[subset]
        own = {axis: numbers(raw[axis], f"{subset} {axis}") for axis in "xy"}
        if not all(len(own[axis]) > 1 and np.all(np.diff(own[axis]) > 0) for axis in "xy"):
            raise ValueError(f"{subset}: expected x and y of two rising numbers or more")
        for q in QUANTITIES:
            own[q] = np.array([numbers(row, f"{subset} {q}", len(own["x"])) for row in raw[q]])
            if own[q].shape != (len(own["y"]), len(own["x"])):
                raise ValueError(f"{subset} {q}: expected {len(own['y'])} rows, found {len(own[q])}")
        points = {name: point for name, point in raw["points"].items() if name in SOLUTIONS}
        own["points"] = {name: (float(point["x"]), float(point["y"])) for name, point in points.items()}
        found["subsets"][subset] = own
    return found


def plane_figures(records, folder, methods):
    """A figure for each record of `load_planes` -> [PNG, CSV, ...]."""
    names = row_names({row_of(r, methods) for r in records})
    titles = [f"{names[row_of(r, methods)]}, {r['dataset']}, seed {r['seed']}" for r in records]
    return [file for r, title in zip(records, titles, strict=True) for file in plane_figure(r["plane"], title, folder)]


def plane_figure(plane, title, folder):
    """Contours of the loss on each subset, the solutions marked -> [PNG, CSV]."""
    caption = f"{plane['space']}: orthonormal plane through the three solutions; levels are quantiles of the loss"
    if plane["template"]:
        caption += f"; zero-shot: {plane['template']}"
    count = len(plane["subsets"])
    flat = min(1.5, max(np.ptp(own["y"]) / np.ptp(own["x"]) for own in plane["subsets"].values()))
    figure = drawing.new_figure(4.6 * count + 0.6, 1.5 + 3.2 * flat, title, caption)
    lines = []
    for axes, (subset, own) in zip(np.atleast_1d(figure.subplots(1, count)), plane["subsets"].items(), strict=True):
        levels = np.unique(np.quantile(own["loss"], np.linspace(0, 1, 13)))
        if len(levels) < 2:  # a flat loss
            levels = np.array([levels[0], levels[0] + 1e-6])
        filled = axes.contourf(own["x"], own["y"], own["loss"], levels=levels, cmap="cividis")
        axes.contour(own["x"], own["y"], own["loss"], levels=levels, colors="0.2", linewidths=0.4)
        figure.colorbar(filled, ax=axes, format="%.3g", label=drawing.AXIS_LABELS["loss"])
        _mark(axes, own["points"])
        axes.set_title(subset, loc="left", fontsize=11)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        axes.ticklabel_format(scilimits=(-2, 4))
        for j, y in enumerate(own["y"]):
            for i, x in enumerate(own["x"]):
                lines.append([subset, f"{x:.6g}", f"{y:.6g}", *(f"{own[q][j, i]:.6f}" for q in QUANTITIES)])
    file = Path(folder, drawing.file_name(f"plane_{title}_{plane['space']}") + ".png")
    return drawing.save(figure, file, to_csv(["subset", "x", "y", *QUANTITIES], lines))


def _mark(axes, points):
    """The solutions, white on black so that they show on any colour."""
    for k, (name, (x, y)) in enumerate(points.items()):
        axes.plot(x, y, drawing.MARKERS[k], color="white", mec="black", ms=9)
        axes.annotate(
            name.replace("_", "-"), (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
        )  # fmt: skip
