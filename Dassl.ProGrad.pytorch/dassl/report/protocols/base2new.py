"""Base-to-new: accuracy on the classes of training, on unseen ones, and the harmonic mean H of the two.

H = 2 base new / (base + new). On one data set it is computed for each seed, then averaged over seeds.
Over several data sets there are two conventions, up to a point apart, and the table names both:
  H of averages   H of the averaged base and the averaged new accuracy; what the papers print
  mean of H       the mean of the data sets' own H
Only evaluation runs count, so base and new come from the same checkpoint, loaded in the same way.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dassl.report.disclosures import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.frame import Grid, build, with_accuracy
from dassl.report.methods import (
    NONE,
    Methods,
    backbone_of,
    names_on,
    row_names,
    row_of,
    shared_settings,
    split_by_template,
)
from dassl.report.protocols.others import EACH, FORGOTTEN, OTHERS, OtherSets, add_others
from dassl.report.records import NoRuns, group_by, require_evaluations, select
from dassl.report.stats import Summary, harmonic_mean, summarise
from dassl.report.table import (
    BELOW,
    MISSING,
    Cell,
    Table,
    below_zero_shot,
    csv_lines,
    data_sets,
    method_report,
    method_table,
    row_notes,
    show,
    show_n,
)

PROTOCOL = "base2new"
SUBSETS = ("base", "new")
QUANTITIES = (*SUBSETS, "H")
AVERAGES = ("base", "new", "H of averages", "mean of H")
JUDGED = ("new", "H")  # what "below zero-shot" is about
EPOCH, STAGE1 = "epoch", "stage 1 itself"  # that the weights are of; percent of cells


@dataclass
class Base2New:
    """Accuracies in percent. grid: columns (data set, quantity), H among them; datasets: in printed order."""

    grid: Grid
    datasets: list
    methods: Methods
    others: OtherSets

    @property
    def rows(self):
        """In printed order."""
        return self.grid.rows

    def by_seed(self, row, dataset, quantity):
        """{seed: percent} of "base", "new", or "H" of the seeds that have both."""
        return self.grid.by_seed(row, (dataset, quantity))

    @cached_property
    def more(self):
        """{"others", "others/SET", "forgotten", "epoch", "stage 1 itself": data sets on which any row has it}."""
        found = {}
        for (_, (dataset, q)), scores in self.grid.scores.items():
            if scores and q not in QUANTITIES:
                found.setdefault(q, {})[dataset] = True
        return found

    @property
    def of_others(self):
        """Which of "others" and "forgotten" there are."""
        return [q for q in (OTHERS, FORGOTTEN) if q in self.more]

    def cell(self, row, dataset):
        """{"base", "new", "H", what there is of `more`: Summary} over the seeds of one data set."""
        more = (q for q, datasets in self.more.items() if dataset in datasets)
        return {q: self.grid.cell(row, (dataset, q)) for q in (*QUANTITIES, *more)}

    def shown(self, row, dataset=None):
        """What a table has of a row, on one data set or on average -> {column: Summary or words}."""
        cells, datasets = (self.cell(row, dataset), [dataset]) if dataset else (self.average(row), self.datasets)
        plain = [*(QUANTITIES if dataset else AVERAGES)]
        if EPOCH in cells:
            epochs = sorted(epoch for d in datasets for epoch in self.by_seed(row, d, EPOCH).values())
            span = f" ({epochs[0]:g}-{epochs[-1]:g})" if len({*epochs}) > 1 else ""
            cells[EPOCH] = Cell(f"{np.median(epochs):g}{span}" if epochs else MISSING, cells["new"].files)
        runs = [r for d in datasets for r in self.grid.runs.get((row, (d, "new")), ())]
        words = Cell("class-bound" if any((r.get("others") or {}).get("bound") for r in runs) else MISSING)
        more = (OTHERS, FORGOTTEN, EPOCH, *(EACH + name for name in self.others.shared.get(dataset, ())))
        return {q: cells[q] for q in plain} | {q: cells[q] or words for q in more if q in cells}

    def average(self, row):
        """{"base", "new", "H of averages", "mean of H", what there is of `more`: Summary}, without a number if any data
        set is missing."""
        base, new, mean_of_h = (self.grid.cell(row, *self.columns(q)) for q in QUANTITIES)
        h = Summary(None, files=base.files + new.files)
        if base and new:
            h = summarise(self.h_by_seed(row))._replace(mean=harmonic_mean(base.mean, new.mean), files=h.files)
        found = dict(zip(AVERAGES, (base, new, h, mean_of_h._replace(files=h.files)), strict=True))
        over = {q: own if q.startswith(EACH) else self.datasets for q, own in self.more.items()}
        return found | {q: self.grid.cell(row, *((d, q) for d in own)) for q, own in over.items()}

    def columns(self, quantity):
        """The grid's columns of one quantity."""
        return [(dataset, quantity) for dataset in self.datasets]

    def h_by_seed(self, row):
        """{seed: H of the averaged base and new accuracy}, of the seeds that all data sets have on both."""
        return _h_by_seed(*(self.grid.average_by_seed(row, self.columns(subset)) for subset in SUBSETS))

    def missing(self, row):
        """What a row lacks, in words -> list such as ["toy_digits (new)"]."""
        gaps = []
        for dataset in self.datasets:
            if lacking := [subset for subset in SUBSETS if not self.by_seed(row, dataset, subset)]:
                trained = any((row, (dataset, subset)) in self.grid.trained for subset in SUBSETS)
                gaps.append(f"{dataset} ({' and '.join(lacking)}{'; trained, not evaluated' if trained else ''})")
        return gaps

    def below(self, row):
        """Where a row is below zero-shot CLIP -> {data set: list of the quantities of JUDGED}."""
        columns = [(dataset, q) for dataset in self.datasets for q in JUDGED]
        found = {}
        for dataset, q in below_zero_shot(row, columns, self.grid, self.methods):
            found.setdefault(dataset, []).append(q)
        return found


def _h_by_seed(base, new):
    return {seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new}


def base2new(records, methods=NONE, protocol=PROTOCOL, row=None):
    """Records of `load_results` -> Base2New. NoRuns if none is a base-to-new evaluation.

    protocol: one name or several; row: function of a record, if rows are something else than methods.
    """
    runs = split_by_template(with_accuracy(records, protocol=protocol, subset=SUBSETS), methods)
    require_evaluations(runs, records, "base-to-new", protocol, "the base or new")
    grid = build(runs, row or (lambda r: row_of(r, methods)), lambda r: (r["dataset"], r["subset"]), methods)
    datasets = sorted({dataset for dataset, _ in grid.columns}, key=methods.dataset_rank)
    grid.columns = [(dataset, quantity) for dataset in datasets for quantity in QUANTITIES]
    others = add_others(grid, datasets, methods)
    for row in grid.rows:
        for dataset in datasets:
            halves = [(row, (dataset, subset)) for subset in SUBSETS]
            grid.scores[row, (dataset, "H")] = _h_by_seed(*(grid.scores.get(half, {}) for half in halves))
            grid.files[row, (dataset, "H")] = [file for half in halves for file in grid.files.get(half, ())]
            runs = [run for half in halves for run in grid.runs.get(half, ())]
            grid.scores[row, (dataset, EPOCH)] = {r["seed"]: r["epochs"] for r in runs if r.get("epochs") is not None}
            warm = [r for r in runs if r.get("warmup") is not None and row.trainer in methods.stage1]
            begin = [(r.get("lmc") or {}).get("TAU", 1) == 1 for r in warm]  # at stage 1, not between it and CLIP
            own = {r["seed"]: 100 * (r["warmup"] and there) for r, there in zip(warm, begin, strict=True)}
            grid.scores[row, (dataset, STAGE1)] = own
    return Base2New(grid, datasets, methods, others)


def average_table(found):
    """The average over data sets -> Table with columns method, base, new, H of averages, mean of H, [others, forgotten,
    epoch,] n."""
    names = row_names(found.rows)
    title = f"Average over {data_sets(found.datasets)}"
    notes = [note for row in names for note in _notes(found, row, names[row])] + stamp_notes(found.grid, names)
    table = _table(title, names, found, None, [*notes, *found.others.notes(names)])
    table.spare = ("mean of H",) if found.of_others else ()  # of the two, papers print the other
    return table


def _table(title, names, found, dataset, notes=()):
    cells = {row: found.shown(row, dataset) for row in names}
    columns = [*cells[found.rows[0]]]
    unjudged = [q for q in columns if q not in (*JUDGED, *AVERAGES[1:])]
    return method_table(title, names, columns, cells.get, found.methods, unjudged=unjudged, notes=notes)


def _notes(found, row, name):
    """What a reader of the row's average must know."""
    gaps = ", ".join(found.missing(row))
    below = ", ".join(f"{dataset} ({', '.join(quantities)})" for dataset, quantities in found.below(row).items())
    without = [dataset for dataset in found.datasets if not found.by_seed(row, dataset, OTHERS)]
    warm = [own for dataset in found.datasets for own in found.by_seed(row, dataset, STAGE1).values()]
    return row_notes(
        name,
        gaps and f"not averaged where a data set is missing: {gaps}",
        0 < len(without) < len(found.datasets) and f"no average of others, without any on {', '.join(without)}",
        any(warm) and f"{np.count_nonzero(warm)} of {len(warm)} cells are stage 1 itself, an epoch at the warm-up rate",
        found.grid.uneven(row, found.columns("base") + found.columns("new"))
        and "data sets have different seeds; means use all of them, deviations and n only the seeds that all data "
        "sets share",
        below and f"below zero-shot on: {below}",
    )


def dataset_table(found, dataset):
    """One data set -> Table with columns method, base, new, H, [others, forgotten, epoch, each of the others,] n."""
    table = _table(dataset, names_on(dataset, found.grid), found, dataset)
    table.wide = tuple(EACH + name for name in found.others.shared[dataset])
    return table


def base2new_report(records, methods=NONE):
    """Records -> Report: the average over data sets, then each data set."""
    return report_of(base2new(records, methods))


def report_of(found):
    """Base2New -> Report. CSV: a line for each row, data set (or "average") and quantity."""

    def cells(row):
        by_dataset = {"average": found.average(row)} | {d: found.cell(row, d) for d in found.datasets}
        return {(dataset, q): summary for dataset, cell in by_dataset.items() for q, summary in cell.items()}

    return method_report(
        PROTOCOL,
        "Base-to-new accuracy in percent" + shared_settings(found.rows),
        [average_table(found), *(dataset_table(found, d) for d in found.datasets)],
        [
            "H: harmonic mean of base and new, per seed, then averaged over seeds",
            "H of averages: H of the averaged base and the averaged new accuracy (as papers print it)",
            "mean of H: mean over data sets of their H",
            f"{BELOW}: H or accuracy on new classes below zero-shot CLIP's on the same backbone",
            *(["forgotten: zero-shot CLIP's others minus the row's, of the same seeds"] * (FORGOTTEN in found.more)),
        ],
        ["dataset", "quantity"],
        csv_lines(row_names(found.rows), cells, stamp_cells(found.grid)),
        STAMP_COLUMNS,
    )


GAIN = "gain in H"


def backbones(records, methods=NONE):
    """Records -> [(Base2New of one backbone, Row, {quantity: Summary})]. NoRuns if there is but one backbone."""
    runs = with_accuracy(records, protocol=PROTOCOL, subset=SUBSETS)
    groups = group_by(select(runs, kind="eval"), backbone_of)
    if len(groups) < 2:
        raise NoRuns(f"No backbones table: base-to-new evaluations on {len(groups)} backbones, expected 2 or more")
    lines = []
    for group in groups.values():
        found = base2new(group, methods)
        lines += [(found, row, found.average(row) | {GAIN: _gain(found, row)}) for row in found.rows]
    return sorted(lines, key=lambda line: methods.rank(line[1]))


def _gain(found, row):
    """H of averages over that of the stage-1 method -> Summary. Deviation and n: of the seeds' differences."""
    first = found.methods.stage1.get(row.trainer)
    stage1 = [r for r in found.rows if r.trainer == first and r.shots == row.shots]
    stage1 = [r for r in stage1 if not r.merge + r.unfinished + r.chosen]
    if len(stage1) != 1 or row.merge:
        return Summary(None)
    ours, theirs = (found.average(r)["H of averages"] for r in (row, stage1[0]))
    if not (ours and theirs):
        return Summary(None)
    mine, other = found.h_by_seed(row), found.h_by_seed(stage1[0])
    paired = summarise({seed: mine[seed] - other[seed] for seed in mine if seed in other})
    return paired._replace(mean=ours.mean - theirs.mean)


def backbones_report(records, methods=NONE):
    """Records -> Report with one table, a line for each method and backbone."""
    found = backbones(records, methods)
    names = row_names([row._replace(backbone="") for _, row, _ in found])
    rows, lines, notes = [], [], []
    for own, row, cells in found:
        name, gain = names[row._replace(backbone="")], cells[GAIN]
        averages = [cells[q] for q in AVERAGES]
        sign = "+" if gain and gain.mean >= 0 else ""
        risen = sign + show(gain) if row.trainer in own.methods.stage1 else ""
        gaps = ", ".join(own.missing(row))
        notes += row_notes(f"{name}, {row.backbone}", gaps and f"not averaged where a data set is missing: {gaps}")
        rows.append([name, row.backbone, str(len(own.datasets)), *map(show, averages), risen, show_n(averages)])
        lines += csv_lines({row: name}, {row: {(q,): cells[q] for q in (*AVERAGES, GAIN)}}.get)
    columns = ["method", "backbone", "data sets", *AVERAGES, GAIN, "n"]
    return method_report(
        "backbones",
        "Backbones, base-to-new accuracy in percent",
        [Table("Average over the data sets of each backbone", columns, rows, notes)],
        [f"{GAIN}: H of averages of a stage-2 method minus that of its stage 1; deviation of the seeds' differences"],
        ["quantity"],
        lines,
    )
