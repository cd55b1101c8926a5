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
so. Loss is the cross-entropy in nats, accuracy in percent, one number per t, on the images of each subset:
base and new, or all; `others`: the mean over all classes of each of these other data sets. `direct` is the straight
line zero-shot -> fine-tuned, t from 0 to 1; it, `others` and `weights` may be missing. `space` names what was
interpolated.

Letters: P points.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dassl.report import records as runs_of
from dassl.report import table
from dassl.report.frame import barrier, fill
from dassl.report.methods import EACH_TEMPLATE, NONE, Methods, row_names, row_of, sort_rows
from dassl.report.records import RESULTS_FILE, NoRuns, group_by, most_alike, newest_each, numbers
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


class PathCurves(NamedTuple):
    """The runs of one method and space on one grid."""

    name: str  # printed, of the middle solution
    space: str
    t: np.ndarray  # (P,)
    subsets: tuple[str, ...]  # in printed order
    runs: dict  # {(subset, quantity): {data set: {seed: (P,)}}}
    ends: list[str]  # printed names of the solutions on the path, in order
    note: str  # of the first run that has one
    others: str  # on how many other data sets the cards are, and from which words
    direct_t: np.ndarray
    direct: dict  # as `runs` on `direct_t`, empty where a run lacks it
    datasets: list[str]  # sorted names
    seeds: int  # that all data sets have


def load_paths(*folders: str | Path) -> list[dict]:
    """All readable path.json of finished runs -> list of records, one for each space: the run's own, with `path`
    ({"t": (P,), SUBSET: {"loss": (P,), "accuracy": (P,)}, ...}) and `space`.

    One that is damaged, not the run's own, or whose run has no results.json, costs one warning and is left out.
    """

    def read(file):
        card, record = read_card(file)
        spaces = [(str(card.get("space", SPACES[0])), card)]
        spaces += [(space, card[space]) for space in SPACES if isinstance(card.get(space), dict)]
        return [{**record, "file": file, "path": _path(raw), "space": space} for space, raw in spaces]

    return [record for records in runs_of.read_all(PATH_FILE, folders, read) for record in records]


def read_card(file: Path) -> tuple[dict, dict]:
    """One path.json -> (what it holds, the record of its run). ValueError for one of other weights than the run's."""
    card, record = runs_of.read_object(file, FORMAT), runs_of.read_result(file.with_name(RESULTS_FILE))
    digest = (record.get("weights") or {}).get("digest")
    if digest and card.get("digest", digest) != digest:
        raise ValueError("it is of other weights than those that the run was tested with")
    return card, record


def _path(raw):
    """One space of a file."""
    start = 0 if SOLUTIONS[0] in raw.get("solutions", SOLUTIONS) else 1
    t = rising(raw.get("t"), "t")
    if len(t) < MIN_POINTS or t[0] != start or t[-1] != 2 or 1 not in t:
        whole = "from 0 over 1 to 2" if start == 0 else "from 1 to 2"
        raise ValueError(f"t: expected {MIN_POINTS} or more rising numbers {whole}, found {t.tolist()}")
    others = raw.get(OTHERS, {})
    path = {"note": str(raw.get("note", "")), "template": str(raw.get("zero_shot_template") or "")}
    path |= {"sets": others.get("sets") or [], "words": str(others.get("zero_shot_template") or "")}
    subsets = (*(("all",) if "all" in raw else SUBSETS[:2]), *([OTHERS] if path["sets"] else []))
    path |= _curves(raw, t, subsets)
    if isinstance(direct := raw.get("direct"), dict):
        path["direct"] = _curves(direct, rising(direct.get("t"), "direct t"), subsets)
    return path


def _curves(raw, t, subsets):
    """A line of a file -> {"t": (P,), subset: {quantity: (P,)}}."""
    return {"t": t} | {subset: curves(raw.get(subset) or {}, subset, len(t)) for subset in subsets}


def rising(values: list, name: str) -> np.ndarray:
    """A list from a file as an array (P,) of two rising numbers or more. ValueError if it is none."""
    array = numbers(values, name)
    if len(array) < 2 or not np.all(np.diff(array) > 0):
        raise ValueError(f"{name}: expected rising numbers, found {values}")
    return array


def curves(raw: dict, subset: str, *shape: int) -> dict[str, np.ndarray]:
    """Loss and accuracy of a subset from a file. ValueError unless both are numbers of this shape."""
    return {q: numbers(raw.get(q), f"{subset} {q}", *shape, percent=q == "accuracy") for q in QUANTITIES}


def families(records: list[dict], methods: Methods) -> list[PathCurves]:
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
    t, alike, unlike = most_alike(records, lambda r: tuple(r["path"]["t"]))
    if unlike:
        get_logger().warning(f"Warning: {name}: left out for other points t than most: {', '.join(unlike)}")
    kept = newest_each(alike, key=lambda r: (r["dataset"], r["seed"]), what="paths")
    paths = [r["path"] for r in kept]
    templates = {path["template"] for path in paths}
    template = templates.pop() if len(templates) == 1 else EACH_TEMPLATE
    ends = [f"zero-shot ({template})" if template else "zero-shot", name, "fine-tuned"][int(t[0]) :]
    counts = sorted({len(path["sets"]) for path in paths})
    others = "no curve of others: not all cards have it" if counts[-1] else ""
    if counts[0]:
        subsets += (OTHERS,)
        words = {path["words"] for path in paths}
        start = f"; zero-shot ({words.pop()})" if len(words) == 1 and all(words) else ""
        others = f"others: mean over {' to '.join(map(str, counts[:: len(counts) - 1 or 1]))} other data sets{start}"

    def runs(curves_of):
        averaged = {}
        for subset, quantity, record in itertools.product(subsets, QUANTITIES, kept):
            by_seed = averaged.setdefault((subset, quantity), {}).setdefault(record["dataset"], {})
            by_seed[record["seed"]] = curves_of(record["path"])[subset][quantity]
        return averaged

    lines = {tuple(path["direct"]["t"]) if "direct" in path else () for path in paths}
    straight = lines.pop() if len(lines) == 1 else ()
    direct = runs(lambda path: path["direct"]) if straight else {}
    note = next((path["note"] for path in paths if path["note"]), "")
    through, by_dataset = runs(lambda path: path), group_by(kept, lambda r: r["dataset"])
    seeds = set.intersection(*({r["seed"] for r in group} for group in by_dataset.values()))
    curves = name, space, np.array(t), subsets, through, ends, note, others, np.array(straight), direct
    return PathCurves(*curves, datasets=sorted(by_dataset), seeds=len(seeds))


def run_barriers(path: dict) -> dict[tuple[str, str, str], float]:
    """A path of `load_paths` -> {(key of LINES, subset, quantity): height}, of the lines that it has."""
    heights = {}
    for line, curves, start in (("Z-O", path, 0), ("O-F", path, 1), ("Z-F", path.get("direct"), 0)):
        if curves is None or curves["t"][0] > start:
            continue  # no zero-shot solution
        inside = (curves["t"] >= start) & (curves["t"] <= start + 1)
        for subset, quantity in itertools.product((s for s in SUBSETS if s in curves), QUANTITIES):
            values = curves[subset][quantity][inside]
            heights[line, subset, quantity] = barrier(curves["t"][inside], values, quantity == "loss")
    return heights


def barriers_report(folders: list, methods: Methods = NONE) -> table.Report:
    """Run folders -> Report of how far each straight line rises over the line between its ends' losses (see `barrier`),
    with a table for each space. NoRuns if there is no path.json.

    A barrier is taken of each run's own curve, then averaged over seeds and data sets: the barrier of an averaged curve
    would hide those that differ in place.
    """
    records = load_paths(*folders)
    if not records:
        raise NoRuns(f"No barriers table: no path.json of a finished run below {', '.join(map(str, folders))}")
    spaces = [_space(*pair, methods) for pair in sorted(group_by(records, lambda r: r["space"]).items())]
    return table.method_report(
        "barriers",
        "Barriers on straight lines between solutions",
        [shown for shown, _ in spaces],
        [
            "barrier: largest loss (nats) above the straight line between the losses at the ends, or accuracy "
            "(points) below it; of each run, then averaged",
            f"Z-O: {LINES['Z-O']}; O-F: {LINES['O-F']}; Z-F: {LINES['Z-F']}, straight",
            f"{table.MISSING}: the method has no zero-shot solution, or the card lacks the line",
        ],
        ["space", "quantity", "line", "subset"],
        [line for _, lines in spaces for line in lines],
        evaluations=False,
    )


def _space(space, records, methods):
    """Records of one space -> Table and CSV lines: a row for each method and subset of the classes that it has a card
    of, the average over the data sets of which the row has one."""

    def heights(run):
        row = row_of(run, methods)
        return {(row, (run["dataset"], *column)): height for column, height in run_barriers(run["path"]).items()}

    newest = newest_each(records, key=lambda r: (row_of(r, methods), r["dataset"], r["seed"]), what="paths")
    grid = fill([{**run, "file": run["file"].with_name(RESULTS_FILE)} for run in newest], heights, methods)
    datasets = sorted({column[0] for column in grid.columns}, key=methods.dataset_rank)
    rows, notes, lines = [], [], []
    for row, name in grid.names.items():
        said = {}  # each once
        for subset in SUBSETS:
            cells = {}
            for quantity, line in itertools.product(QUANTITIES, LINES):
                columns = [(dataset, line, subset, quantity) for dataset in datasets]
                cells[quantity, line] = grid.cell(row, *(column for column in columns if grid.by_seed(row, column)))
            if not any(cells.values()):
                continue
            if lacks := sorted(d for d in datasets if not grid.by_seed(row, (d, "O-F", subset, "loss"))):
                text = f"average over {len(datasets) - len(lacks)} of them, no card on: {', '.join(lacks)}"
                said.setdefault(text, f"{name}, {subset}" if subset == OTHERS else name)
            shown = [table.show(cell, digits=DIGITS[quantity]) for (quantity, _), cell in cells.items()]
            rows.append([name, subset, *shown, table.show_n(filter(None, cells.values()))])
            numbers = {(space, quantity, LINES[line], subset): cell for (quantity, line), cell in cells.items()}
            lines += table.csv_lines(name, row, numbers, digits=6)
        notes += [note for text, whose in said.items() for note in table.row_notes(whose, text)]
    columns = ["method", "classes", *(f"{quantity} {line}" for quantity in QUANTITIES for line in LINES), "n"]
    title = f"Space of {space}, average over {table.data_sets(datasets)}"
    return table.Table(title, columns, rows, notes), lines
