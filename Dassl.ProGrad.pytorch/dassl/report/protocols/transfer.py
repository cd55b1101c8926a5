"""Trained on one data set, evaluated on others: cross-data-set, domain generalisation, robust fine-tuning.

One table per source: the source's own test set, each target, and the average over the targets (Avg-C in the
cross-data-set protocol, Avg-D over shifted test sets). Zero-shot CLIP has no source, so its runs on all
classes of a column count in every table, whatever protocol they were made for.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dassl.report.disclosures import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.frame import Grid, build, with_accuracy, without_repeats
from dassl.report.methods import (
    NONE,
    Methods,
    chosen_alpha,
    merge_values,
    row_names,
    row_of,
    sees_no_data,
    shared_settings,
    split_by_template,
)
from dassl.report.records import group_by, is_number, require_evaluations, select
from dassl.report.table import BELOW, MISSING, below_zero_shot, csv_lines, method_report, method_table, row_notes

SUBSET = "all"


class Protocol(NamedTuple):
    """What its report is called."""

    heading: str
    average: str  # name of the mean over targets
    also: tuple = ()  # protocols whose runs on the source's own test set count here too


PROTOCOLS = {
    "cross": Protocol("Cross-data-set accuracy in percent", "Avg-C", ("dg",)),
    "dg": Protocol("Domain generalisation, accuracy in percent", "Avg-D", ("cross",)),
    "robust": Protocol("Robust fine-tuning, accuracy in percent", "Avg-D"),
}


@dataclass
class Transfer:
    """What was trained on one data set."""

    source: str
    grid: Grid  # of data sets, the source first
    methods: Methods
    average: str  # name of the mean over targets
    alphas: dict  # {row: {(alpha, what it was chosen on)}}

    @property
    def targets(self):
        """All data sets but the source."""
        return [name for name in self.grid.columns if name != self.source]

    def cells(self, row):
        """{data set or name of the average: Summary}."""
        cells = {name: self.grid.cell(row, name) for name in self.grid.columns}
        return cells | {self.average: self.grid.cell(row, *self.targets)}

    def numbers(self, row):
        """The same by alpha, what it was chosen on, source and data set, as a CSV has them."""
        head = (*_alpha_cells(self.alphas.get(row)), self.source)
        return {(*head, name): summary for name, summary in self.cells(row).items()}


def transfer(records, protocol, methods=NONE):
    """Records of `load_results` -> list of Transfer, one per source. NoRuns if there is no evaluation.

    protocol: a key of PROTOCOLS.
    """
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    own = select(runs, protocol=protocol)
    trained = [r for r in own if not sees_no_data(r)]
    zero_shot = [r for r in select(runs, kind="eval") if sees_no_data(r)]
    require_evaluations(own, records, protocol, protocol, "all")
    found = []
    for source, group in group_by(trained, source_of).items() or [("", own)]:
        names = {r["dataset"] for r in group if r["kind"] == "eval"} | ({source} - {""})
        lent = select(runs, protocol=PROTOCOLS[protocol].also, dataset=source, kind="eval")
        lent = [r for r in lent if source_of(r) == source] + [r for r in zero_shot if r["dataset"] in names]
        group = without_repeats(group, lent, lambda r: (row_of(r, methods), r["dataset"], r["seed"]))
        grid = build(group, lambda r: row_of(r, methods), lambda r: r["dataset"], methods)
        grid.columns.sort(key=lambda name, source=source: (name != source, methods.dataset_rank(name)))
        alphas = {}
        for record in group:
            if is_number(alpha := merge_values(record).get("alpha")):
                chosen = alpha, chosen_alpha(record) or "given"
                alphas.setdefault(row_of(record, methods), set()).add(chosen)
        found.append(Transfer(source, grid, methods, PROTOCOLS[protocol].average, alphas))
    return found


def source_of(record):
    """The data set that a record's weights were trained on; its own where the file does not say."""
    return record.get("source") or record["dataset"]


def _table(found):
    """-> Table with columns method, [alpha, chosen on], source, targets, average, n."""
    grid, names = found.grid, row_names(found.grid.rows)
    head = ["alpha", "chosen on"] if found.alphas else []
    return method_table(
        f"Trained on {found.source}" if found.source else "Zero-shot",
        names,
        [*head, *grid.columns, found.average],
        found.cells,
        found.methods,
        extra=lambda row: _alpha_cells(found.alphas.get(row), MISSING) if head else [],
        notes=[note for row in names for note in _notes(found, row, names[row])] + stamp_notes(grid, names),
    )


def _alpha_cells(found, missing=""):
    """{(alpha, chosen on)} -> two cells; a range where seeds chose differently."""
    if not found:
        return [missing] * 2
    values = sorted({alpha for alpha, _ in found})
    shown = f"{values[0]:g}" + (f" to {values[-1]:g}" if len(values) > 1 else "")
    return [shown, ", ".join(sorted({chosen for _, chosen in found}))]


def _notes(found, row, name):
    grid, average = found.grid, found.average
    gaps = ", ".join(grid.missing(row, found.targets))
    below = below_zero_shot(row, grid.columns, grid, found.methods)
    return row_notes(
        name,
        gaps and f"no {average}, a target is missing: {gaps}",
        grid.uneven(row, grid.columns)
        and f"data sets have different seeds; {average} uses all of them, its deviation and n only the seeds that all "
        "targets share",
        below and f"below zero-shot on: {', '.join(below)}",
    )


def transfer_report(records, protocol, methods=NONE):
    """Records -> Report with a table for each source."""
    found, known = transfer(records, protocol, methods), PROTOCOLS[protocol]
    return method_report(
        protocol,
        known.heading + shared_settings([row for one in found for row in one.grid.rows]),
        [_table(one) for one in found],
        [
            f"{known.average}: mean over the targets, all columns but the first data set, which is the source",
            f"{BELOW}: below zero-shot CLIP on the same backbone",
            *(["alpha: weight of the fine-tuned model in the merge"] if any(one.alphas for one in found) else []),
        ],
        ["alpha", "alpha_chosen_on", "source", "dataset"],
        [line for one in found for line in csv_lines(row_names(one.grid.rows), one.numbers, stamp_cells(one.grid))],
        STAMP_COLUMNS,
    )
