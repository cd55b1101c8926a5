"""Others: the accuracy of a model that was trained on one data set over all classes of other data sets.

The entry "others" in results.json of an evaluation on new classes has the counts; nothing is scored here. A mean is
over the sets, of one split, that every row has. A row without an entry, and zero-shot CLIP on a further template, has
none.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dassl.report.figures import drawing
from dassl.report.methods import row_names, zero_shot_row
from dassl.report.table import csv_numbers, to_csv

OTHERS, FORGOTTEN = "others", "forgotten"
EACH = f"{OTHERS}/"  # before a name: the accuracy on that set
WORDS = "by the row's own prompt, where words are needed by 'a photo of a {}.', zero-shot CLIP's included"


class OtherSets(NamedTuple):
    """shared: {data set: names of the others that every row has}; lacking: {other set: rows that lack it}."""

    shared: dict
    lacking: dict

    def notes(self, names):
        """What the columns mean, and which sets are in no mean -> list of str. names: {row: printed}."""
        own = {dataset: ", ".join(others) for dataset, others in self.shared.items() if others}
        unions = {", ".join(sorted({dataset, *self.shared[dataset]})) for dataset in own}
        over = [f"{union}, without the data set of training" for union in unions]
        over = over if len(over) == 1 else [f"{others} (trained on {dataset})" for dataset, others in own.items()]
        lacking = {name: ", ".join(dict.fromkeys(map(names.get, rows))) for name, rows in sorted(self.lacking.items())}
        return [f"others: mean accuracy over all classes of {'; '.join(over)}; {WORDS}."] * bool(over) + [
            f"{name} is left out of others where {f'a row lacks it: {rows}' if rows else 'rows have several splits'}."
            for name, rows in lacking.items()
        ]


def add_others(grid, datasets, methods):
    """Fills columns of a grid, (data set, "others"), (..., "forgotten") and (..., "others/SET") -> OtherSets."""
    shared, lacking = found = OtherSets({}, {})
    for dataset in datasets:
        rows = [row for row in grid.rows if row.trainer != methods.zero_shot or not row.preset]
        runs = [(row, run) for row in rows for run in grid.runs.get((row, (dataset, "new")), ())]
        runs = [(row, run, own) for row, run in runs if (own := _accuracies(run))]
        keys = set.intersection(*(set(own) for *_, own in runs)) if runs else ()
        keys = sorted(keys, key=lambda key: methods.dataset_rank(key[0]))
        shared[dataset] = [name for name, _ in keys]
        for name in {name for *_, own in runs for name, _ in own} - {*shared[dataset]}:
            lacking.setdefault(name, []).extend(row for row, _, own in runs if name not in dict(own.keys()))
        for row, run, own in runs if keys else ():
            values = {OTHERS: np.mean([own[key] for key in keys])} | {EACH + key[0]: own[key] for key in keys}
            for q, value in values.items():
                grid.scores.setdefault((row, (dataset, q)), {})[run["seed"]] = value
                grid.files.setdefault((row, (dataset, q)), []).append(str(run["file"]))
        for row in rows:
            cells = [(r, (dataset, OTHERS)) for r in (zero_shot_row(row, rows, methods), row)]
            theirs, ours = (grid.scores.get(cell, {}) for cell in cells)
            if lost := {seed: theirs[seed] - ours[seed] for seed in ours if seed in theirs}:
                grid.scores[row, (dataset, FORGOTTEN)] = lost
                grid.files[row, (dataset, FORGOTTEN)] = [file for cell in cells for file in grid.files[cell]]
    return found


def _accuracies(record):
    """{(other data set, digest of its split): percent}."""
    sets = (record.get("others") or {}).get("sets") or {}
    own = {(name, str(n.get("split_digest"))): n for name, n in sets.items() if name != record["dataset"]}
    return {key: 100 * n["correct"] / n["total"] for key, n in own.items()}


def others_figure(found, folder):
    """Base against others, a point a row, averaged over data sets -> [PNG, CSV]. found: Base2New."""
    averages = {row: found.average(row) for row in found.rows}
    points = {row: (a["base"], a[OTHERS]) for row, a in averages.items() if a["base"] and a.get(OTHERS)}
    if not points:
        return []
    caption = f"{drawing.mean_over(found.datasets)}; bars: one standard deviation over seeds; dotted: zero-shot CLIP"
    figure = drawing.new_figure(8.4, 4.6, "What training on base classes costs on other data sets", caption)
    axes, names, lines = figure.subplots(), row_names(found.rows), []
    for k, (row, (base, others)) in enumerate(points.items()):
        marker = drawing.style(k + k // len(drawing.MARKERS))["marker"]  # none has a colour twice
        look = drawing.style(k) | {"marker": marker, "linestyle": "none", "label": drawing.wrapped(names[row], 28, 3)}
        axes.errorbar(base.mean, others.mean, others.std or 0, base.std or 0, capsize=2, ms=7, **look)
        if row.trainer == found.methods.zero_shot:
            axes.axhline(others.mean, color="0.4", lw=1.2, ls=":")
        lines.append([names[row], *csv_numbers(base)[:2], *csv_numbers(others)])
    axes.set_xlabel("base: accuracy (%)")
    drawing.plain_axes(axes, "others: accuracy (%)")
    drawing.legend(figure)
    numbers = to_csv(["method", "base", "base_std", OTHERS, f"{OTHERS}_std", "n"], lines)
    return drawing.save(figure, Path(folder, "base_others.png"), numbers)
