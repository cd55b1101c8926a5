"""The plane through the three solutions (Garipov et al., arXiv 1802.10026), from path.json: contours of the loss.

    "plane": {"space": "features", "base": {"x": [X], "y": [Y], "loss": [[X] * Y], "accuracy": [[X] * Y],
                                            "points": {"zero_shot": {"x", "y", ...}, "ours": ..., "fine_tuned": ...}},
              "new": {...}}

Class vectors depend on the subset's names, so each subset has a plane of its own.
Letters: X, Y grid points along the plane's two orthonormal directions.
"""

from pathlib import Path

import numpy as np

from dassl.report.drawing import AXIS_LABELS, MARKERS, file_name, new_figure, save
from dassl.report.methods import row_names, row_of
from dassl.report.paths import FORMAT, PATH_FILE, QUANTITIES, SPACES, SUBSETS, numbers
from dassl.report.results import RESULTS_FILE, read_all, read_object, read_result
from dassl.report.tables import to_csv


def load_planes(*folders):
    """Runs whose path.json has a plane -> list of records: the run's own, with `plane`.

    A damaged one costs a warning and is left out.
    """
    return read_all(PATH_FILE, folders, _read, what="the plane in ")


def _read(file):
    """A path.json -> record, or None without a plane."""
    card = read_object(file, FORMAT)
    plane = card.get("plane")
    if not isinstance(plane, dict) or not any(subset in plane for subset in SUBSETS):
        return None
    own = card if card.get("space") == plane.get("space") else card.get(plane.get("space"), {})
    plane = _checked(plane) | {"template": str(own.get("zero_shot_template") or "")}
    return {**read_result(file.with_name(RESULTS_FILE)), "plane": plane, "file": file}


def _checked(plane):
    """The plane with arrays for lists -> dict. ValueError, KeyError or TypeError if it is none."""
    found = {"space": str(plane.get("space", SPACES[0])), "subsets": {}}
    for subset in SUBSETS:
        if subset not in plane:
            continue
        raw = plane[subset]
        own = {axis: numbers(raw[axis], f"{subset} {axis}") for axis in "xy"}
        for q in QUANTITIES:
            own[q] = np.array([numbers(row, f"{subset} {q}", len(own["x"])) for row in raw[q]])
            if own[q].shape != (len(own["y"]), len(own["x"])):
                raise ValueError(f"{subset} {q}: expected {len(own['y'])} rows, found {len(own[q])}")
        own["points"] = {name: (float(point["x"]), float(point["y"])) for name, point in raw["points"].items()}
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
    figure = new_figure(4.6 * count + 0.6, 1.5 + 3.2 * flat, title, caption)
    lines = []
    for axes, (subset, own) in zip(np.atleast_1d(figure.subplots(1, count)), plane["subsets"].items(), strict=True):
        levels = np.unique(np.quantile(own["loss"], np.linspace(0, 1, 13)))
        if len(levels) < 2:  # a flat loss
            levels = np.array([levels[0], levels[0] + 1e-6])
        filled = axes.contourf(own["x"], own["y"], own["loss"], levels=levels, cmap="cividis")
        axes.contour(own["x"], own["y"], own["loss"], levels=levels, colors="0.2", linewidths=0.4)
        figure.colorbar(filled, ax=axes, format="%.3g", label=AXIS_LABELS["loss"])
        _mark(axes, own["points"])
        axes.set_title(subset, loc="left", fontsize=11)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        axes.ticklabel_format(scilimits=(-2, 4))
        for j, y in enumerate(own["y"]):
            for i, x in enumerate(own["x"]):
                lines.append([subset, f"{x:.6g}", f"{y:.6g}", *(f"{own[q][j, i]:.6f}" for q in QUANTITIES)])
    file = Path(folder, file_name(f"plane_{title}_{plane['space']}") + ".png")
    return save(figure, file, to_csv(["subset", "x", "y", *QUANTITIES], lines))


def _mark(axes, points):
    """The solutions, white on black so that they show on any colour."""
    for k, (name, (x, y)) in enumerate(points.items()):
        axes.plot(x, y, MARKERS[k], color="white", mec="black", ms=9)
        axes.annotate(
            name.replace("_", "-"), (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
        )  # fmt: skip
