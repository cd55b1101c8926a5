"""Base-to-new: accuracy on the classes of training, on unseen ones, and the harmonic mean H of the two.

H = 2 base new / (base + new). On one data set it is computed for each seed, then averaged over seeds.
Over several data sets there are two conventions, up to a point apart, and the table names both:
  H of averages   H of the averaged base and the averaged new accuracy; what the papers print
  mean of H       the mean of the data sets' own H
Only evaluation runs count, so base and new come from the same checkpoint, loaded in the same way.

Others: the accuracy over all classes of data sets that a model was not trained on, from the counts in the entry
"others" in results.json of an evaluation on new classes. A mean is over the sets, of one split, that every row has. A
row without an entry, and zero-shot CLIP on a further template, has none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dassl.report import table
from dassl.report.disclosures import STAMP_COLUMNS, names_on, stamp_cells, stamp_notes
from dassl.report.frame import Grid, Row, Summary, build, harmonic_mean, summarise, with_accuracy
from dassl.report.methods import NONE, Methods, backbone_of, row_names, row_of, shared_settings, split_by_template
from dassl.report.records import NoRuns, group_by, require_evaluations, select

PROTOCOL = "base2new"
SUBSETS = ("base", "new")
QUANTITIES = (*SUBSETS, "H")
AVERAGES = ("base", "new", "H of averages", "mean of H")
JUDGED = ("new", "H")  # what "below zero-shot" is about
EPOCH, STAGE1 = "epoch", "stage 1 itself"  # that the weights are of; percent of cells
OTHERS, FORGOTTEN = "others", "forgotten"
EACH = f"{OTHERS}/"  # before a name: the accuracy on that set
GAIN = "gain in H"


@dataclass
class Base2New(Grid):
    """Accuracies in percent by columns (data set, quantity), H among them. datasets: in printed order; shared: {data
    set: names of the others that every row has}; lacking: {other set: rows that lack it}."""

    datasets: list[str] = field(default_factory=list)
    shared: dict = field(default_factory=dict)
    lacking: dict = field(default_factory=dict)

    @cached_property
    def more(self) -> dict[str, dict[str, bool]]:
        """{"others", "others/SET", "forgotten", "epoch", "stage 1 itself": data sets on which any row has it}."""
        more: dict = {}
        for (_, (dataset, q)), scores in self.scores.items():
            if scores and q not in QUANTITIES:
                more.setdefault(q, {})[dataset] = True
        return more

    @property
    def of_others(self) -> list[str]:
        """Which of "others" and "forgotten" there are."""
        return [q for q in (OTHERS, FORGOTTEN) if q in self.more]

    def each(self, quantity: str) -> list[tuple[str, str]]:
        """The columns of one quantity."""
        return [(dataset, quantity) for dataset in self.datasets]

    def on(self, row: Row, dataset: str) -> dict[str, Summary]:
        """{"base", "new", "H", what there is of `more`: Summary} over the seeds of one data set."""
        more = (q for q, datasets in self.more.items() if dataset in datasets)
        return {q: self.cell(row, (dataset, q)) for q in (*QUANTITIES, *more)}

    def average(self, row: Row) -> dict[str, Summary]:
        """{"base", "new", "H of averages", "mean of H", what there is of `more`: Summary}, without a number if any data
        set is missing."""
        base, new, mean_of_h = (self.cell(row, *self.each(q)) for q in QUANTITIES)
        h = Summary(None, files=base.files + new.files)
        if base and new:
            h = summarise(self.h_by_seed(row))._replace(mean=harmonic_mean(base.mean, new.mean), files=h.files)
        plain = dict(zip(AVERAGES, (base, new, h, mean_of_h._replace(files=h.files)), strict=True))
        over = {q: datasets if q.startswith(EACH) else self.datasets for q, datasets in self.more.items()}
        return plain | {q: self.cell(row, *((d, q) for d in datasets)) for q, datasets in over.items()}

    def h_by_seed(self, row: Row) -> dict:
        """{seed: H of the averaged base and new accuracy}, of the seeds that all data sets have on both."""
        return _h_by_seed(*(self.average_by_seed(row, self.each(subset)) for subset in SUBSETS))

    def gaps(self, row: Row) -> str:
        """What a row lacks, in words such as "toy_digits (new), toy_shapes (base and new)"."""
        gaps = []
        for dataset in self.datasets:
            if lacking := [subset for subset in SUBSETS if not self.by_seed(row, (dataset, subset))]:
                trained = any((row, (dataset, subset)) in self.trained for subset in SUBSETS)
                gaps.append(f"{dataset} ({' and '.join(lacking)}{'; trained, not evaluated' if trained else ''})")
        return ", ".join(gaps)

    def others_notes(self, names: dict[Row, str]) -> list[str]:
        """What the columns of others mean, and which sets are in no mean. names: {row: printed}."""
        shared = {dataset: ", ".join(others) for dataset, others in self.shared.items() if others}
        unions = {", ".join(sorted({dataset, *self.shared[dataset]})) for dataset in shared}
        over = [f"{union}, without the data set of training" for union in unions]
        over = over if len(over) == 1 else [f"{others} (trained on {dataset})" for dataset, others in shared.items()]
        words = "by the row's own prompt, where words are needed by 'a photo of a {}.', zero-shot CLIP's included"
        notes = [f"others: mean accuracy over all classes of {'; '.join(over)}; {words}."] if over else []
        for name, rows in sorted(self.lacking.items()):
            lack = ", ".join(dict.fromkeys([names[row] for row in rows]))
            why = f"a row lacks it: {lack}" if lack else "rows have several splits"
            notes.append(f"{name} is left out of others where {why}.")
        return notes


def _h_by_seed(base, new):
    return {seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new}


def base2new(
    records: list[dict], methods: Methods = NONE, protocol: str | tuple = PROTOCOL, row_for: Callable | None = None
) -> Base2New:
    """From records of `load_results`. NoRuns if none is a base-to-new evaluation.

    protocol: one name or several; row_for: function of a record, if rows are something else than methods.
    """
    runs = split_by_template(with_accuracy(records, protocol=protocol, subset=SUBSETS), methods)
    require_evaluations(runs, records, "base-to-new", protocol, "the base or new")
    grid = build(runs, row_for or (lambda r: row_of(r, methods)), lambda r: (r["dataset"], r["subset"]), methods)
    datasets = sorted({dataset for dataset, _ in grid.columns}, key=methods.dataset_rank)
    grid = Base2New(**vars(grid), datasets=datasets)
    for dataset in datasets:
        _add_others(grid, dataset)
    for row in grid.rows:
        for dataset in datasets:
            halves = [(row, (dataset, subset)) for subset in SUBSETS]
            grid.add(row, (dataset, "H"), _h_by_seed(*(grid.scores.get(half, {}) for half in halves)), *halves)
            runs = [run for half in halves for run in grid.runs.get(half, ())]
            epochs = {r["seed"]: r["epochs"] for r in runs if r.get("epochs") is not None}
            grid.scores[row, (dataset, EPOCH)] = epochs
            warm = [r for r in runs if r.get("warmup") is not None and row.trainer in methods.stage1]
            begin = [(r.get("lmc") or {}).get("TAU", 1) == 1 for r in warm]  # at stage 1, not between it and CLIP
            itself = {r["seed"]: 100 * (r["warmup"] and there) for r, there in zip(warm, begin, strict=True)}
            grid.scores[row, (dataset, STAGE1)] = itself
    return grid


def _add_others(grid, dataset):
    """Fills the columns (data set, "others"), (..., "forgotten") and (..., "others/SET"), `shared` and `lacking`."""
    methods = grid.methods
    rows = [row for row in grid.rows if row.trainer != methods.zero_shot or not row.preset]
    runs = [(row, run) for row in rows for run in grid.runs.get((row, (dataset, "new")), ())]
    runs = [(row, run, percent) for row, run in runs if (percent := _accuracies(run))]
    keys = set.intersection(*(set(percent) for *_, percent in runs)) if runs else ()
    keys = sorted(keys, key=lambda key: methods.dataset_rank(key[0]))
    grid.shared[dataset] = [name for name, _ in keys]
    for name in {name for *_, percent in runs for name, _ in percent} - {*grid.shared[dataset]}:
        lacking = (row for row, _, percent in runs if name not in dict(percent.keys()))
        grid.lacking.setdefault(name, []).extend(lacking)
    for row, run, percent in runs if keys else ():
        values = {OTHERS: np.mean([percent[key] for key in keys])} | {EACH + key[0]: percent[key] for key in keys}
        for q, value in values.items():
            grid.scores.setdefault((row, (dataset, q)), {})[run["seed"]] = value
            grid.runs.setdefault((row, (dataset, q)), []).append(run)
    for row in rows:
        cells = [(r, (dataset, OTHERS)) for r in (grid.zero_shot(row), row)]
        before, scores = (grid.scores.get(cell, {}) for cell in cells)
        if lost := {seed: before[seed] - scores[seed] for seed in scores if seed in before}:
            grid.add(row, (dataset, FORGOTTEN), lost, *cells)


def _accuracies(record):
    """{(other data set, digest of its split): percent}."""
    sets = (record.get("others") or {}).get("sets") or {}
    percent = {name: 100 * n["correct"] / n["total"] for name, n in sets.items() if name != record["dataset"]}
    return {(name, str(sets[name].get("split_digest"))): value for name, value in percent.items()}


def base2new_table(grid: Base2New, dataset: str | None = None) -> table.Table:
    """The average over data sets, or one of them: columns method, base, new, (H of averages, mean of H) or H, [others,
    forgotten, epoch, each of the others of a data set,] n."""
    average = dataset is None
    datasets, plain = (grid.datasets, AVERAGES) if average else ([dataset], QUANTITIES)
    each = tuple(EACH + name for name in grid.shared.get(dataset, ()))
    names = names_on(dataset, grid)

    def shown(row):
        cells = grid.average(row) if average else grid.on(row, dataset)
        if EPOCH in cells:
            epochs = sorted(epoch for d in datasets for epoch in grid.by_seed(row, (d, EPOCH)).values())
            span = f" ({epochs[0]:g}-{epochs[-1]:g})" if len({*epochs}) > 1 else ""
            cells[EPOCH] = table.Cell(f"{np.median(epochs):g}{span}" if epochs else table.MISSING, cells["new"].files)
        runs = [r for d in datasets for r in grid.runs.get((row, (d, "new")), ())]
        words = table.Cell("class-bound" if any((r.get("others") or {}).get("bound") for r in runs) else table.MISSING)
        more = (q for q in (OTHERS, FORGOTTEN, EPOCH, *each) if q in cells)
        return {q: cells[q] for q in plain} | {q: cells[q] or words for q in more}

    columns = [*shown(grid.rows[0])]
    unjudged = [q for q in columns if q not in (*JUDGED, *AVERAGES[1:])]
    title = f"Average over {table.data_sets(datasets)}" if dataset is None else dataset
    made = table.method_table(title, grid, names, columns, shown, unjudged=unjudged)
    made.wide = each
    if average:
        made.notes = [note for item in names.items() for note in _row_notes(grid, *item)]
        made.notes += stamp_notes(grid, names) + grid.others_notes(names)
        made.spare = ("mean of H",) if grid.of_others else ()  # of the two, papers print the other
    return made


def _row_notes(grid, row, name):
    gaps, judged = grid.gaps(row), [(dataset, q) for dataset in grid.datasets for q in JUDGED]
    below = group_by(grid.below(row, judged), lambda column: column[0])
    below = ", ".join(f"{dataset} ({', '.join(q for _, q in columns)})" for dataset, columns in below.items())
    without = [dataset for dataset, _ in grid.each(OTHERS) if not grid.by_seed(row, (dataset, OTHERS))]
    warm = [percent for column in grid.each(STAGE1) for percent in grid.by_seed(row, column).values()]
    return table.row_notes(
        name,
        gaps and f"not averaged where a data set is missing: {gaps}",
        0 < len(without) < len(grid.datasets) and f"no average of others, without any on {', '.join(without)}",
        any(warm) and f"{np.count_nonzero(warm)} of {len(warm)} cells are stage 1 itself, an epoch at the warm-up rate",
        grid.uneven(row, grid.each("base") + grid.each("new"))
        and "data sets have different seeds; means use all of them, deviations and n only the seeds that all data "
        "sets share",
        below and f"below zero-shot on: {below}",
    )


def base2new_report(records: list[dict], methods: Methods = NONE) -> table.Report:
    """The average over data sets, then each data set. CSV: a line for each row, data set (or "average") and quantity.
    NoRuns if no record is a base-to-new evaluation."""
    grid, lines = base2new(records, methods), []
    for row, name in grid.names.items():
        by_dataset = {"average": grid.average(row)} | {d: grid.on(row, d) for d in grid.datasets}
        cells = {(dataset, q): summary for dataset, cell in by_dataset.items() for q, summary in cell.items()}
        lines += table.csv_lines(name, row, cells, stamp_cells(grid, row))
    return table.method_report(
        PROTOCOL,
        "Base-to-new accuracy in percent" + shared_settings(grid.rows),
        [base2new_table(grid, dataset) for dataset in (None, *grid.datasets)],
        [
            "H: harmonic mean of base and new, per seed, then averaged over seeds",
            "H of averages: H of the averaged base and the averaged new accuracy (as papers print it)",
            "mean of H: mean over data sets of their H",
            f"{table.BELOW}: H or accuracy on new classes below zero-shot CLIP's on the same backbone",
            *(["forgotten: zero-shot CLIP's others minus the row's, of the same seeds"] * (FORGOTTEN in grid.more)),
        ],
        ["dataset", "quantity"],
        lines,
        STAMP_COLUMNS,
    )


def backbones_report(records: list[dict], methods: Methods = NONE) -> table.Report:
    """One table, a line for each method and backbone. NoRuns if there is but one backbone."""
    runs = with_accuracy(records, protocol=PROTOCOL, subset=SUBSETS)
    groups = group_by(select(runs, kind="eval"), backbone_of)
    if len(groups) < 2:
        raise NoRuns(f"No backbones table: base-to-new evaluations on {len(groups)} backbones, expected 2 or more")
    grids = [base2new(group, methods) for group in groups.values()]
    pairs = sorted(((row, grid) for grid in grids for row in grid.rows), key=lambda pair: methods.rank(pair[0]))
    names = row_names([row._replace(backbone="") for row, _ in pairs])
    rows, lines, notes = [], [], []
    for row, grid in pairs:
        name, averages, gain = names[row._replace(backbone="")], grid.average(row), _gain(grid, row)
        sign, gaps = "+" if gain and gain.mean >= 0 else "", grid.gaps(row)
        risen = sign + table.show(gain) if row.trainer in methods.stage1 else ""
        gaps = gaps and f"not averaged where a data set is missing: {gaps}"
        notes += table.row_notes(f"{name}, {row.backbone}", gaps)
        cells = {q: averages[q] for q in AVERAGES}
        shown = [*map(table.show, cells.values()), risen, table.show_n(cells.values())]
        rows.append([name, row.backbone, str(len(grid.datasets)), *shown])
        lines += table.csv_lines(name, row, {(q,): summary for q, summary in {**cells, GAIN: gain}.items()})
    columns = ["method", "backbone", "data sets", *AVERAGES, GAIN, "n"]
    return table.method_report(
        "backbones",
        "Backbones, base-to-new accuracy in percent",
        [table.Table("Average over the data sets of each backbone", columns, rows, notes)],
        [f"{GAIN}: H of averages of a stage-2 method minus that of its stage 1; deviation of the seeds' differences"],
        ["quantity"],
        lines,
    )


def _gain(grid, row):
    """H of averages over that of the stage-1 method -> Summary. Deviation and n: of the seeds' differences."""
    first = grid.methods.stage1.get(row.trainer)
    stage1 = [r for r in grid.rows if r.trainer == first and r.shots == row.shots]
    stage1 = [r for r in stage1 if not r.merge + r.unfinished + r.chosen]
    if len(stage1) != 1 or row.merge:
        return Summary(None)
    tuned, start = (grid.average(r)["H of averages"] for r in (row, stage1[0]))
    if not (tuned and start):
        return Summary(None)
    mine, other = grid.h_by_seed(row), grid.h_by_seed(stage1[0])
    paired = summarise({seed: mine[seed] - other[seed] for seed in mine if seed in other})
    return paired._replace(mean=tuned.mean - start.mean)
