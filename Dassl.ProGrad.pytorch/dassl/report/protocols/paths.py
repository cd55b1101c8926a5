"""The path zero-shot -> ours -> fine-tuned of stage-2 runs: reading path.json, checking it, averaging it.

A run leaves path.json in its folder, beside results.json, which says whose path it is:

    {"format": 1, "space": "features", "solutions": ["zero_shot", "ours", "fine_tuned"],
     "zero_shot_template": "a photo of a {}.",
     "t": [0.0, 0.1, ..., 2.0],
     "base": {"loss": [...], "accuracy": [...]},
     "new": {"loss": [...], "accuracy": [...]},
     "others": {"asked": ["auto"], "sets": ["ToyShapes", ...], "zero_shot_template": "a photo of a {}.", "loss": ...},
     "direct": {"t": [0.0, ..., 1.0], "base": {...}, "new": {...}},
     "weights": {the same fields in the other space}}

t rises from 0 (zero-shot) over 1 (ours) to 2 (fine-tuned), with 0, 1 and 2 among at least 21 points, so each
straight piece has unit length. A method without a zero-shot solution has t from 1 to 2, and its `solutions` say
so. Loss is the cross-entropy in nats, accuracy in percent, one number per t, on the pictures of each subset:
base and new, or all; `others`: the mean over all classes of each of these other data sets. `direct` is the straight
line zero-shot -> fine-tuned, t from 0 to 1; it, `others` and `weights` may be missing. `space` names what was
interpolated.

Letters: P points.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from dassl.report.frame import Grid, fill
from dassl.report.methods import EACH_TEMPLATE, NONE, row_names, row_of, sort_rows
from dassl.report.records import (
    RESULTS_FILE,
    NoRuns,
    group_by,
    is_number,
    most_alike,
    newest_each,
    read_all,
    read_object,
    read_result,
)
from dassl.report.stats import barrier
from dassl.report.table import MISSING, Table, csv_lines, data_sets, method_report, row_notes, show, show_n
from dassl.utils import get_logger

PATH_FILE = "path.json"
FORMAT = 1
MIN_POINTS = 21
OTHERS = "others"  # a subset that a card may lack
SUBSETS = ("base", "new", "all", OTHERS)
QUANTITIES = ("loss", "accuracy")
SPACES = ("features", "weights")
SOLUTIONS = ("zero_shot", "ours", "fine_tuned")
LINES = {"Z-O": "zero-shot to ours", "O-F": "ours to fine-tuned", "Z-F": "zero-shot to fine-tuned"}
DIGITS = {"loss": 4, "accuracy": 2}


@dataclass
class PathCurves:
    """The runs of one method and space on one grid."""

    name: str  # printed, of the middle solution
    space: str
    t: np.ndarray  # (P,)
    runs: dict  # {(subset, quantity): {data set: {seed: (P,)}}}
    note: str  # of the first run that has one
    template: str  # of zero-shot CLIP at the start, where the runs say
    others: str  # of `_others_note`
    direct_t: np.ndarray | None = None
    direct: dict = field(default_factory=dict)  # as `runs` on `direct_t`, empty where a run lacks it

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


def load_paths(*folders):
    """All readable path.json of finished runs -> list of records, one for each space: the run's own, with `path`
    ({"t": (P,), "space": str, SUBSET: {"loss": (P,), "accuracy": (P,)}, ...}) and `space`.

    One that is damaged, not the run's own, or whose run has no results.json, costs one warning and is left out.
    """

    def read(file):
        card, record = read_card(file)
        paths = [_path(card, str(card.get("space", SPACES[0])))]
        paths += [_path(card[space], space) for space in SPACES if isinstance(card.get(space), dict)]
        return [{**record, "file": file, "path": path, "space": path["space"]} for path in paths]

    return [record for records in read_all(PATH_FILE, folders, read) for record in records]


def read_card(file):
    """One path.json -> (what it holds, the record of its run). ValueError for one of other weights than the run's."""
    card, record = read_object(file, FORMAT), read_result(file.with_name(RESULTS_FILE))
    digest = (record.get("weights") or {}).get("digest")
    if digest and card.get("digest", digest) != digest:
        raise ValueError("it is of other weights than those that the run was tested with")
    return card, record


def _path(raw, space):
    """One space of a file."""
    start = 0 if SOLUTIONS[0] in raw.get("solutions", SOLUTIONS) else 1
    t = numbers(raw.get("t"), "t")
    rises = len(t) >= MIN_POINTS and np.all(np.diff(t) > 0)
    if not rises or t[0] != start or t[-1] != 2 or 1 not in t:
        whole = "from 0 over 1 to 2" if start == 0 else "from 1 to 2"
        raise ValueError(f"t: expected {MIN_POINTS} or more rising numbers {whole}, found {t.tolist()}")
    subsets = ("all",) if "all" in raw else SUBSETS[:2]
    others = raw.get(OTHERS, {})
    subsets += (OTHERS,) if others.get("sets") else ()
    path = {"t": t, "space": space, "note": str(raw.get("note", "")), **_subsets(raw, len(t), subsets)}
    path["sets"], path["words"] = others.get("sets") or [], str(others.get("zero_shot_template") or "")
    path["template"] = str(raw.get("zero_shot_template") or "")
    if isinstance(raw.get("direct"), dict):
        line = numbers(raw["direct"].get("t"), "direct t")
        if len(line) < 2 or not np.all(np.diff(line) > 0):
            raise ValueError(f"direct t: expected rising numbers, found {line.tolist()}")
        path["direct"] = {"t": line, **_subsets(raw["direct"], len(line), subsets)}
    return path


def _subsets(raw, length, subsets):
    """{subset: {quantity: (P,)}} of these subsets."""
    found = {}
    for subset in subsets:
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
    if name.endswith("accuracy") and not all(0 <= value <= 100 for value in values):
        raise ValueError(f"{name}: expected numbers from 0 to 100, found {str(values)[:60]}")
    return np.array(values, dtype=float)


def families(records, methods):
    """Records of `load_paths` -> list of PathCurves, one per printed method and space, in printed order."""
    names = row_names(sort_rows((row_of(r, methods) for r in records), methods))
    order = list(names.values())

    def key(record):
        subsets = tuple(subset for subset in SUBSETS if subset in record["path"] and subset != OTHERS)
        return order.index(names[row_of(record, methods)]), record["space"], subsets

    groups = sorted(group_by(records, key).items(), key=lambda item: item[0])
    return [_path_curves(group, order[place], *more) for (place, *more), group in groups]


def _path_curves(records, name, space, subsets):
    """Records of one family -> PathCurves. Runs on another grid than most: one warning, and left out."""
    grid, alike, others = most_alike(records, lambda r: tuple(r["path"]["t"]))
    if others:
        get_logger().warning(f"Warning: {name}: left out for other points t than most: {', '.join(others)}")
    kept = newest_each(alike, key=lambda r: (r["dataset"], r["seed"]), what="paths")
    note = next((r["path"]["note"] for r in kept if r["path"]["note"]), "")
    templates = {r["path"]["template"] for r in kept}
    template = templates.pop() if len(templates) == 1 else EACH_TEMPLATE
    subsets += (OTHERS,) if all(r["path"]["sets"] for r in kept) else ()
    runs = _runs(kept, subsets, lambda path: path)
    curves = PathCurves(name, space, np.array(grid), runs, note, template, _others_note(kept))
    lines = {tuple(r["path"]["direct"]["t"]) if "direct" in r["path"] else None for r in kept}
    if len(lines) == 1 and None not in lines:
        curves.direct_t = np.array(lines.pop())
        curves.direct = _runs(kept, subsets, lambda path: path["direct"])
    return curves


def _others_note(records):
    """On how many other sets the cards are, from which words, or that not all have any."""
    counts = sorted({len(r["path"]["sets"]) for r in records})
    if not counts[0]:
        return "no curve of others: not all cards have it" if counts[-1] else ""
    words = {r["path"]["words"] for r in records}
    ends = f"; zero-shot ({words.pop()})" if len(words) == 1 and all(words) else ""
    return f"others: mean over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} other data sets{ends}"


def _runs(records, subsets, curves_of):
    """{(subset, quantity): {data set: {seed: (P,)}}}. curves_of: path -> the curves that are meant."""
    runs = {(s, q): {} for s in subsets for q in QUANTITIES}
    for record in records:
        for (subset, quantity), by_dataset in runs.items():
            curve = curves_of(record["path"])[subset][quantity]
            by_dataset.setdefault(record["dataset"], {})[record["seed"]] = curve
    return runs


def run_barriers(path):
    """A path of `load_paths` -> {(key of LINES, subset, quantity): height}, of the lines that it has."""
    pieces = {"Z-O": (path, 0, 1), "O-F": (path, 1, 2)}
    if "direct" in path:
        pieces["Z-F"] = (path["direct"], 0, 1)
    found = {}
    for line, (curves, start, end) in pieces.items():
        inside = (curves["t"] >= start) & (curves["t"] <= end)
        if inside.sum() < 2:
            continue  # no zero-shot solution
        for subset in (s for s in SUBSETS if s in curves):
            for quantity in QUANTITIES:
                values = curves[subset][quantity][inside]
                found[line, subset, quantity] = barrier(curves["t"][inside], values, quantity == "loss")
    return found


def barriers_report(folders, methods=NONE):
    """Run folders -> Report of how far each straight line rises over the line between its ends' losses (see `barrier`),
    with a table for each space. NoRuns if there is no path.json.

    A barrier is taken of each run's own curve, then averaged over seeds and data sets: the barrier of an averaged curve
    would hide those that differ in place.
    """
    records = load_paths(*folders)
    if not records:
        raise NoRuns(f"No barriers table: no path.json of a finished run below {', '.join(map(str, folders))}")
    tables, lines = [], []
    for space, group in sorted(group_by(records, lambda r: r["space"]).items()):
        table, numbers = _space(space, *_grid(group, methods))
        tables.append(table)
        lines += numbers
    return method_report(
        "barriers",
        "Barriers on straight lines between solutions",
        tables,
        [
            "barrier: largest loss (nats) above the straight line between the losses at the ends, or accuracy "
            "(points) below it; of each run, then averaged",
            f"Z-O: {LINES['Z-O']}; O-F: {LINES['O-F']}; Z-F: {LINES['Z-F']}, straight",
            f"{MISSING}: the method has no zero-shot solution, or the card lacks the line",
        ],
        ["space", "quantity", "line", "subset"],
        lines,
        evaluations=False,
    )


def _grid(records, methods):
    """Grid with columns (data set, line, subset, quantity), and the data sets."""

    def cells(run):
        row, heights = row_of(run, methods), run_barriers(run["path"])
        return {(row, (run["dataset"], *column)): height for column, height in heights.items()}

    newest = newest_each(records, key=lambda r: (row_of(r, methods), r["dataset"], r["seed"]), what="paths")
    scores, files = fill([{**run, "file": run["file"].with_name(RESULTS_FILE)} for run in newest], cells)
    rows = sort_rows((row for row, _ in scores), methods)
    datasets = sorted({column[0] for _, column in scores}, key=methods.dataset_rank)
    return Grid(rows, list(dict.fromkeys(column for _, column in scores)), scores, files), datasets


def _cells(grid, row, datasets, subset):
    """{(quantity, line): Summary}: the average over the data sets of which the row has a card."""
    cells = {}
    for quantity, line in itertools.product(QUANTITIES, LINES):
        columns = [(dataset, line, subset, quantity) for dataset in datasets]
        cells[quantity, line] = grid.cell(row, *(column for column in columns if grid.by_seed(row, column)))
    return cells


def _space(space, grid, datasets):
    """-> Table and CSV lines of one space: a row for each method and subset of the classes that it has a card of."""
    rows, notes, lines = [], [], []
    for row, name in row_names(grid.rows).items():
        said = {}  # each once
        for subset in SUBSETS:
            cells = _cells(grid, row, datasets, subset)
            if not any(cells.values()):
                continue
            if lacks := sorted(d for d in datasets if not grid.by_seed(row, (d, "O-F", subset, "loss"))):
                text = f"average over {len(datasets) - len(lacks)} of them, no card on: {', '.join(lacks)}"
                said.setdefault(text, f"{name}, {subset}" if subset == OTHERS else name)
            shown = [show(cell, digits=DIGITS[quantity]) for (quantity, _), cell in cells.items()]
            rows.append([name, subset, *shown, show_n(filter(None, cells.values()))])
            numbers = {(space, quantity, LINES[line], subset): cell for (quantity, line), cell in cells.items()}
            lines += csv_lines({row: name}, {row: numbers}.get, digits=6)
        notes += [note for text, whose in said.items() for note in row_notes(whose, text)]
    columns = ["method", "classes", *(f"{quantity} {line}" for quantity in QUANTITIES for line in LINES), "n"]
    return Table(f"Space of {space}, average over {data_sets(datasets)}", columns, rows, notes), lines
