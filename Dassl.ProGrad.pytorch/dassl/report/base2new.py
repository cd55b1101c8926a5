"""Base-to-new: accuracy on the classes of training, on unseen ones, and the harmonic mean H of the two.

H = 2 base new / (base + new). On one data set it is computed for each seed, then averaged over seeds.
Over several data sets there are two conventions, up to a point apart, and the table names both:
  H of averages   H of the averaged base and the averaged new accuracy; what the papers print
  mean of H       the mean of the data sets' own H
Only evaluation runs count. A training run's final test is on base classes too; it is left out, so that
base and new come from the same checkpoint, loaded in the same way.
"""

from dataclasses import dataclass
from pathlib import Path

from dassl.report.methods import Methods, row_names, row_of, shared_settings, sort_rows
from dassl.report.results import newest_each, select
from dassl.report.stats import Summary, harmonic_mean, mean_by_seed, summarise, summarise_average
from dassl.report.tables import MISSING, Table, csv_numbers, show, to_csv
from dassl.utils import UserError, atomic_write

PROTOCOL = "base2new"
SUBSETS = ("base", "new")
AVERAGES = ("base", "new", "H of averages", "mean of H")


@dataclass
class Base2New:
    """Accuracies in percent by row, data set and subset.

    rows: printed order; datasets: sorted names; scores: {(row, dataset, subset): {seed: accuracy}};
    trained: the (row, dataset) of training runs, which name a missing cell's likely reason.
    """

    rows: list
    datasets: list
    scores: dict
    trained: set

    def by_seed(self, row, dataset, quantity):
        """{seed: accuracy} of "base" or "new"; for "H", of the seeds that have both."""
        if quantity in SUBSETS:
            return self.scores.get((row, dataset, quantity), {})
        base, new = (self.by_seed(row, dataset, subset) for subset in SUBSETS)
        return {seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new}

    def cell(self, row, dataset):
        """{"base", "new", "H": Summary or None} over the seeds of one data set."""
        return {q: summarise(self.by_seed(row, dataset, q)) for q in (*SUBSETS, "H")}

    def average(self, row):
        """{"base", "new", "H of averages", "mean of H": Summary or None}; None if any data set is missing."""
        by = {q: {d: self.by_seed(row, d, q) for d in self.datasets} for q in (*SUBSETS, "H")}
        found = {q: summarise_average(by[q]) for q in by}
        return {
            "base": found["base"],
            "new": found["new"],
            "H of averages": _h_of_averages(found, by),
            "mean of H": found["H"],
        }

    def missing(self, row):
        """What a row lacks, in words -> list such as ["toy_digits (new)"]."""
        gaps = []
        for dataset in self.datasets:
            lacking = [s for s in SUBSETS if not self.by_seed(row, dataset, s)]
            if lacking:
                hint = "; trained, not evaluated" if (row, dataset) in self.trained else ""
                gaps.append(f"{dataset} ({' and '.join(lacking)}{hint})")
        return gaps


def _h_of_averages(found, by):
    """Mean: H of the averaged accuracies. Deviation: over seeds that all data sets have on both."""
    if not (found["base"] and found["new"]):
        return None
    base, new = (mean_by_seed(by[subset]) for subset in SUBSETS)
    shared = summarise({seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new})
    mean = harmonic_mean(found["base"].mean, found["new"].mean)
    return Summary(mean, shared.std if shared else None, shared.n if shared else 0)


def base2new(records, methods=None):
    """Records of `load_results` -> Base2New. UserError if none is a base-to-new evaluation."""
    methods = methods or Methods()

    def cell_of(record):
        return row_of(record, methods), record["dataset"], record["subset"]

    runs = select(records, protocol=PROTOCOL, subset=SUBSETS)
    runs = [r for r in runs if "accuracy" in r["metrics"]]
    evaluations = select(runs, kind="eval")
    if not evaluations:
        raise UserError(
            f"No base-to-new table: of {len(records)} results, {len(runs)} follow the protocol {PROTOCOL!r} "
            "on the base or new classes and none of these is an evaluation run"
        )
    scores = {}
    for record in newest_each(evaluations, key=lambda r: (*cell_of(r), r["seed"]), what="evaluations"):
        scores.setdefault(cell_of(record), {})[record["seed"]] = record["metrics"]["accuracy"]
    return Base2New(
        rows=sort_rows((row for row, _, _ in scores), methods),
        datasets=sorted({dataset for _, dataset, _ in scores}),
        scores=scores,
        trained={(row_of(r, methods), r["dataset"]) for r in select(runs, kind="train")},
    )


def average_table(found):
    """The average over data sets -> Table with columns method, base, new, H of averages, mean of H, n."""
    names = row_names(found.rows)
    rows, notes = [], []
    for row in found.rows:
        average = found.average(row)
        rows.append([names[row], *(show(average[q]) for q in AVERAGES), _show_n(average.values())])
        gaps = found.missing(row)
        if gaps:
            notes.append(f"{names[row]}: not averaged where a data set is missing: {', '.join(gaps)}.")
        if _uneven(found, row):
            notes.append(
                f"{names[row]}: data sets have different seeds; means use all of them, "
                "deviations and n only the seeds that all data sets share."
            )
    count = len(found.datasets)
    title = f"Average over {count} data set{'s' if count > 1 else ''}"
    return Table(title, ["method", *AVERAGES, "n"], rows, notes)


def dataset_table(found, dataset):
    """One data set -> Table with columns method, base, new, H, n."""
    names = row_names(found.rows)
    rows = []
    for row in found.rows:
        cell = found.cell(row, dataset)
        rows.append([names[row], *(show(summary) for summary in cell.values()), _show_n(cell.values())])
    return Table(dataset, ["method", *SUBSETS, "H", "n"], rows)


def _show_n(summaries):
    """The number of seeds behind a line; where its columns differ, one number for each."""
    counts = [0 if s is None else s.n for s in summaries]
    if not any(counts):
        return MISSING
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def _uneven(found, row):
    """True if the data sets that a row has do not all have the same seeds."""
    seeds = [set(found.by_seed(row, d, s)) for d in found.datasets for s in SUBSETS]
    return len({frozenset(s) for s in seeds if s}) > 1


def _heading(found):
    settings = shared_settings(found.rows)
    return "Base-to-new accuracy in percent" + (f" ({settings})" if settings else "")


def _legend():
    return [
        "mean ± population deviation over n seeds; where the columns of a line differ, n is given for each",
        "H: harmonic mean of base and new, per seed, then averaged over seeds",
        "H of averages: H of the averaged base and the averaged new accuracy (as papers print it)",
        "mean of H: mean over data sets of their H",
        f"{MISSING}: no evaluation run found",
    ]


def to_text(found):
    """For the terminal: each data set, the average last, where it is read first -> str."""
    tables = [*(dataset_table(found, d) for d in found.datasets), average_table(found)]
    return "\n\n".join([_heading(found), *(table.text() for table in tables), "\n".join(_legend())])


def to_markdown(found):
    """The average first, then each data set -> str."""
    tables = [average_table(found), *(dataset_table(found, d) for d in found.datasets)]
    legend = "\n".join(f"- {line}" for line in _legend())
    return "\n\n".join([f"## {_heading(found)}", *(table.markdown() for table in tables), legend]) + "\n"


def to_csv_text(found):
    """One line for each row, data set (or "average") and quantity; no mean and n 0 if missing -> str."""
    columns = ["method", "trainer", "preset", "backbone", "shots", "dataset", "quantity", "mean", "std", "n"]
    names = row_names(found.rows)
    lines = []
    for row in found.rows:
        cells = {"average": found.average(row), **{d: found.cell(row, d) for d in found.datasets}}
        head = [names[row], row.trainer, row.preset, row.backbone, "" if row.shots is None else row.shots]
        for dataset, cell in cells.items():
            lines += [[*head, dataset, q, *csv_numbers(summary)] for q, summary in cell.items()]
    return to_csv(columns, lines)


def write_base2new(found, folder):
    """Writes base2new.md and base2new.csv into `folder` -> their Paths."""
    paths = [Path(folder, "base2new.md"), Path(folder, "base2new.csv")]
    for path, text in zip(paths, (to_markdown(found), to_csv_text(found)), strict=True):
        with atomic_write(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    return paths
