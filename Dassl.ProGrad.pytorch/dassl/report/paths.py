"""The path zero-shot -> ours -> fine-tuned of stage-2 runs: reading path.json, checking it, averaging it.

A run leaves path.json in its folder, beside results.json, which says whose path it is:

    {"format": 1, "space": "features",
     "t": [0.0, 0.1, ..., 2.0],
     "base": {"loss": [...], "accuracy": [...]},
     "new": {"loss": [...], "accuracy": [...]}}

t rises from 0 (zero-shot) over 1 (ours) to 2 (fine-tuned), at least 21 points with 0, 1 and 2 among them,
so each straight piece has unit length. Loss is the cross-entropy in nats, accuracy in percent, one number
per t, on the base and the new test pictures. `space` names what was interpolated: "features" (default) or
"weights".

Letters: P points.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dassl.report.methods import row_names, row_of, sort_rows
from dassl.report.results import (
    RESULTS_FILE,
    find_files,
    group_by,
    is_number,
    newest_each,
    read_object,
    read_result,
)
from dassl.report.stats import summarise, summarise_average
from dassl.utils import get_logger

PATH_FILE = "path.json"
FORMAT = 1
MIN_POINTS = 21
SUBSETS = ("base", "new")
QUANTITIES = ("loss", "accuracy")


class Family(NamedTuple):
    """Runs that belong into one figure. name: the method's printed name; space: what was interpolated."""

    name: str
    space: str


@dataclass
class PathCurves:
    """The runs of one family on one grid.

    name: printed name of the middle solution; t: (P,); runs: {(subset, quantity): {data set: {seed:
    (P,)}}}.
    """

    name: str
    space: str
    t: np.ndarray
    runs: dict

    @property
    def datasets(self):
        """Sorted names."""
        return sorted(self.runs["base", "loss"])

    def dataset(self, dataset, subset, quantity):
        """Summary over the seeds of one data set, mean (P,)."""
        return summarise(self.runs[subset, quantity][dataset])

    def average(self, subset, quantity):
        """Summary of the average over data sets, mean (P,); deviation and n over the seeds that all share."""
        return summarise_average(self.runs[subset, quantity])


def load_paths(*folders):
    """All readable path.json of finished runs -> list of records: the run's own, with `path` and `space`.

    One that is damaged, or whose run has no results.json, costs one warning and is left out.
    """
    records = []
    for file in find_files(PATH_FILE, *folders):
        try:
            path = read_path(file)
            record = read_result(file.with_name(RESULTS_FILE))
        except (OSError, ValueError, RecursionError) as error:
            get_logger().warning(f"Warning: {file} is left out: {error}")
            continue
        records.append({**record, "file": file, "path": path, "space": path["space"]})
    return records


def read_path(file):
    """One path.json -> {"t": (P,), "base": {"loss": (P,), "accuracy": (P,)}, "new": {...}, "space": str}.

    ValueError says what is wrong with it.
    """
    raw = read_object(file, FORMAT)
    t = _numbers(raw.get("t"), "t")
    if len(t) < MIN_POINTS or np.any(np.diff(t) <= 0) or t[0] != 0 or t[-1] != 2 or 1 not in t:
        raise ValueError(f"t: expected {MIN_POINTS} or more rising numbers from 0 over 1 to 2, found {t.tolist()}")
    path = {"t": t, "space": str(raw.get("space", "features"))}
    for subset in SUBSETS:
        curves = raw.get(subset)
        if not isinstance(curves, dict):
            raise ValueError(f"{subset!r}: expected the curves {' and '.join(QUANTITIES)}, found {curves!r}")
        path[subset] = {q: _numbers(curves.get(q), f"{subset} {q}", len(t)) for q in QUANTITIES}
    return path


def _numbers(values, name, length=None):
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise ValueError(f"{name}: expected a list of finite numbers, found {str(values)[:60]}")
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: expected one number for each of {length} points, found {len(values)}")
    return np.array(values, dtype=float)


def families(records, methods):
    """Records of `load_paths` -> list of PathCurves, one per printed method and space, in printed order."""
    rows = sort_rows((row_of(r, methods) for r in records), methods)
    names = row_names(rows)
    groups = group_by(records, key=lambda r: Family(names[row_of(r, methods)], r["space"]))
    order = list(names.values())
    ordered = sorted(groups, key=lambda family: (order.index(family.name), family.space))
    return [path_curves(groups[family], family.name, family.space) for family in ordered]


def path_curves(records, name, space="features"):
    """Records of one family -> PathCurves. Runs on another grid than most: one warning, and left out."""
    grids = group_by(records, key=lambda r: tuple(r["path"]["t"]))
    grid = max(grids, key=lambda t: len(grids[t]))
    others = [str(r["file"]) for t, group in grids.items() if t != grid for r in group]
    if others:
        get_logger().warning(f"Warning: {name}: left out for other points t than most: {', '.join(others)}")
    runs = {(s, q): {} for s in SUBSETS for q in QUANTITIES}
    for record in newest_each(grids[grid], key=lambda r: (r["dataset"], r["seed"]), what="paths"):
        for (subset, quantity), by_dataset in runs.items():
            curve = record["path"][subset][quantity]
            by_dataset.setdefault(record["dataset"], {})[record["seed"]] = curve
    return PathCurves(name, space, np.array(grid), runs)
