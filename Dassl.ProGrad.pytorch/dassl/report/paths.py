"""The path zero-shot -> ours -> fine-tuned of stage-2 runs: reading path.json, checking it, averaging it.

A run leaves path.json in its folder, beside results.json, which says whose path it is:

    {"format": 1, "space": "features", "solutions": ["zero_shot", "ours", "fine_tuned"],
     "zero_shot_template": "a photo of a {}.",
     "t": [0.0, 0.1, ..., 2.0],
     "base": {"loss": [...], "accuracy": [...]},
     "new": {"loss": [...], "accuracy": [...]},
     "direct": {"t": [0.0, ..., 1.0], "base": {...}, "new": {...}},
     "weights": {the same fields in the other space}}

t rises from 0 (zero-shot) over 1 (ours) to 2 (fine-tuned), with 0, 1 and 2 among at least 21 points, so each
straight piece has unit length. A method without a zero-shot solution has t from 1 to 2, and its `solutions` say
so. Loss is the cross-entropy in nats, accuracy in percent, one number per t, on the pictures of each subset:
base and new, or all. `direct` is the straight line zero-shot -> fine-tuned, t from 0 to 1; it and `weights` may be
missing. `space` names what was interpolated.

Letters: P points.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dassl.report.methods import EACH_TEMPLATE, row_names, row_of, sort_rows
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
SUBSETS = ("base", "new", "all")
QUANTITIES = ("loss", "accuracy")
SPACES = ("features", "weights")
SOLUTIONS = ("zero_shot", "ours", "fine_tuned")


class Family(NamedTuple):
    """Runs that belong into one figure. name: the method's printed name; space: what was interpolated."""

    name: str
    space: str
    subsets: tuple = ("base", "new")


@dataclass
class PathCurves:
    """The runs of one family on one grid.

    name: printed name of the middle solution; t: (P,); runs: {(subset, quantity): {data set: {seed: (P,)}}};
    direct: the same on `direct_t`, empty where a run lacks it.
    """

    name: str
    space: str
    t: np.ndarray
    runs: dict
    direct_t: np.ndarray | None = None
    direct: dict = field(default_factory=dict)
    note: str = ""  # of the first run that has one
    template: str = ""  # of zero-shot CLIP at the start, where the runs say

    @property
    def ends(self):
        """Printed names of the solutions on the path, in order."""
        zero_shot = f"zero-shot ({self.template})" if self.template else "zero-shot"
        return [zero_shot, self.name, "fine-tuned"][int(self.t[0]) :]

    @property
    def subsets(self):
        """In printed order."""
        return list(dict.fromkeys(subset for subset, _ in self.runs))

    @property
    def datasets(self):
        """Sorted names."""
        return sorted(self.runs[self.subsets[0], "loss"])

    def dataset(self, dataset, subset, quantity):
        """Summary over the seeds of one data set, mean (P,)."""
        return summarise(self.runs[subset, quantity][dataset])

    def average(self, subset, quantity):
        """Summary of the average over data sets, mean (P,); deviation and n over the seeds that all share."""
        return summarise_average(self.runs[subset, quantity])

    def average_direct(self, subset, quantity):
        """The same of the direct line."""
        return summarise_average(self.direct[subset, quantity])


def load_paths(*folders):
    """All readable path.json of finished runs -> list of records, one for each space: the run's own, with `path` and
    `space`.

    One that is damaged, or whose run has no results.json, costs one warning and is left out.
    """
    records = []
    for file in find_files(PATH_FILE, *folders):
        try:
            paths = read_paths(file)
            record = read_result(file.with_name(RESULTS_FILE))
        except (OSError, ValueError, RecursionError) as error:
            get_logger().warning(f"Warning: {file} is left out: {error}")
            continue
        records += [{**record, "file": file, "path": path, "space": path["space"]} for path in paths]
    return records


def read_paths(file):
    """One path.json -> list of {"t": (P,), "space": str, SUBSET: {"loss": (P,), "accuracy": (P,)}, ...}.

    ValueError says what is wrong with it.
    """
    raw = read_object(file, FORMAT)
    paths = [_path(raw, str(raw.get("space", SPACES[0])))]
    paths += [_path(raw[space], space) for space in SPACES if isinstance(raw.get(space), dict)]
    return paths


def _path(raw, space):
    """One space of a file."""
    start = 0 if SOLUTIONS[0] in raw.get("solutions", SOLUTIONS) else 1
    t = numbers(raw.get("t"), "t")
    rises = len(t) >= MIN_POINTS and np.all(np.diff(t) > 0)
    if not rises or t[0] != start or t[-1] != 2 or 1 not in t:
        whole = "from 0 over 1 to 2" if start == 0 else "from 1 to 2"
        raise ValueError(f"t: expected {MIN_POINTS} or more rising numbers {whole}, found {t.tolist()}")
    path = {"t": t, "space": space, "note": str(raw.get("note", "")), **_subsets(raw, len(t))}
    path["template"] = str(raw.get("zero_shot_template") or "")
    if isinstance(raw.get("direct"), dict):
        line = numbers(raw["direct"].get("t"), "direct t")
        path["direct"] = {"t": line, **_subsets(raw["direct"], len(line))}
    return path


def _subsets(raw, length):
    """{subset: {quantity: (P,)}}: `all`, or else both base and new."""
    wanted = ("all",) if "all" in raw else SUBSETS[:2]
    found = {}
    for subset in wanted:
        curves = raw.get(subset)
        if not isinstance(curves, dict):
            raise ValueError(f"{subset!r}: expected the curves {' and '.join(QUANTITIES)}, found {curves!r}")
        found[subset] = {q: numbers(curves.get(q), f"{subset} {q}", length) for q in QUANTITIES}
    return found


def numbers(values, name, length=None):
    """A list from a file as an array (P,). ValueError if it holds anything but `length` finite numbers."""
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise ValueError(f"{name}: expected a list of finite numbers, found {str(values)[:60]}")
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: expected one number for each of {length} points, found {len(values)}")
    return np.array(values, dtype=float)


def families(records, methods):
    """Records of `load_paths` -> list of PathCurves, one per printed method and space, in printed order."""
    rows = sort_rows((row_of(r, methods) for r in records), methods)
    names = row_names(rows)
    groups = group_by(
        records,
        key=lambda r: Family(names[row_of(r, methods)], r["space"], tuple(s for s in SUBSETS if s in r["path"])),
    )
    order = list(names.values())
    ordered = sorted(groups, key=lambda family: (order.index(family.name), family[1:]))
    return [path_curves(groups[family], family.name, family.space, family.subsets) for family in ordered]


def path_curves(records, name, space="features", subsets=("base", "new")):
    """Records of one family -> PathCurves. Runs on another grid than most: one warning, and left out."""
    grids = group_by(records, key=lambda r: tuple(r["path"]["t"]))
    grid = max(grids, key=lambda t: len(grids[t]))
    others = [str(r["file"]) for t, group in grids.items() if t != grid for r in group]
    if others:
        get_logger().warning(f"Warning: {name}: left out for other points t than most: {', '.join(others)}")
    kept = newest_each(grids[grid], key=lambda r: (r["dataset"], r["seed"]), what="paths")
    lines = {tuple(r["path"]["direct"]["t"]) if "direct" in r["path"] else None for r in kept}
    curves = PathCurves(name, space, np.array(grid), _runs([(r, r["path"]) for r in kept], subsets))
    curves.note = next((r["path"]["note"] for r in kept if r["path"].get("note")), "")
    templates = {r["path"]["template"] for r in kept}
    curves.template = templates.pop() if len(templates) == 1 else EACH_TEMPLATE
    if len(lines) == 1 and None not in lines:
        curves.direct_t = np.array(lines.pop())
        curves.direct = _runs([(r, r["path"]["direct"]) for r in kept], subsets)
    return curves


def _runs(pairs, subsets):
    """[(record, its curves)] -> {(subset, quantity): {data set: {seed: (P,)}}}."""
    runs = {(s, q): {} for s in subsets for q in QUANTITIES}
    for record, curves in pairs:
        for (subset, quantity), by_dataset in runs.items():
            by_dataset.setdefault(record["dataset"], {})[record["seed"]] = curves[subset][quantity]
    return runs
