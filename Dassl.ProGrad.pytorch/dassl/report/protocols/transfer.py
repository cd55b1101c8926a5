"""Trained on one data set, evaluated on others: cross-data-set, domain generalisation, robust fine-tuning.

One table per source: the source's own test set, each target, and the average over the targets (Avg-C in the
cross-data-set protocol, Avg-D over shifted test sets). Zero-shot CLIP has no source, so its runs on all
classes of a column count in every table, whatever protocol they were made for.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from dassl.report import table
from dassl.report.disclosures import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.frame import Grid, Row, Summary, build, with_accuracy
from dassl.report.methods import NONE, Methods, merge_values, row_of, sees_no_data, shared_settings, split_by_template
from dassl.report.records import group_by, is_number, require_evaluations, select, without_repeats

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
class Transfer(Grid):
    """What was trained on one data set, by data sets, the source first."""

    source: str = ""
    average: str = ""  # name of the mean over targets
    targets: list[str] = field(default_factory=list)  # all data sets but the source

    def on(self, row: Row) -> dict[str, Summary]:
        """By data set and name of the average."""
        return {name: self.cell(row, name) for name in self.columns} | {self.average: self.cell(row, *self.targets)}

    def alpha(self, row: Row, missing: str = "") -> list[str]:
        """Alpha and what it was chosen on, two words; a range where seeds chose differently."""
        runs = [run for column in self.columns for run in self.runs.get((row, column), ())]
        merged = [run for run in runs if is_number(merge_values(run).get("alpha"))]
        if not merged:
            return [missing] * 2
        values = sorted({merge_values(run)["alpha"] for run in merged})
        shown = f"{values[0]:g}" + (f" to {values[-1]:g}" if len(values) > 1 else "")
        chosen = {run.get("alpha_chosen_on") or "none" for run in merged}
        return [shown, ", ".join(sorted(word.replace("none", "given") for word in chosen))]


def transfer(records: list[dict], protocol: str, methods: Methods = NONE) -> list[Transfer]:
    """From records of `load_results`, one per source. NoRuns if there is no evaluation.

    protocol: a key of PROTOCOLS.
    """
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    following, known = select(runs, protocol=protocol), PROTOCOLS[protocol]
    trained = [r for r in following if not sees_no_data(r)]
    require_evaluations(following, records, protocol, protocol, "all")
    grids = []
    for source, group in group_by(trained, source_of).items() or [("", following)]:
        names = {r["dataset"] for r in group if r["kind"] == "eval"} | ({source} - {""})
        lent = select(runs, protocol=known.also, dataset=source, kind="eval")
        lent = [r for r in lent if source_of(r) == source]
        lent += [r for r in runs if sees_no_data(r) and r["dataset"] in names]
        group = without_repeats(group, lent, lambda r: (row_of(r, methods), r["dataset"], r["seed"]))
        grid = build(group, lambda r: row_of(r, methods), lambda r: r["dataset"], methods)
        grid.columns.sort(key=methods.dataset_rank)
        grid.columns.sort(key=source.__ne__)  # it stands first
        targets = [name for name in grid.columns if name != source]
        grids.append(Transfer(**vars(grid), source=source, average=known.average, targets=targets))
    return grids


def source_of(record: dict) -> str:
    """The data set that a record's weights were trained on; its own where the file does not say."""
    return record.get("source") or record["dataset"]


def _table(grid):
    """-> Table with columns method, [alpha, chosen on], source, targets, average, n."""
    uneven = (
        f"data sets have different seeds; {grid.average} uses all of them, its deviation and n only the seeds that all "
        "targets share"
    )
    notes = table.column_notes(grid, grid.columns, grid.targets, f"no {grid.average}, a target is missing", uneven)
    merged = any(grid.alpha(row)[0] for row in grid.rows)
    return table.method_table(
        f"Trained on {grid.source}" if grid.source else "Zero-shot",
        grid,
        grid.names,
        [*["alpha", "chosen on"][: 2 * merged], *grid.columns, grid.average],
        grid.on,
        extra=lambda row: grid.alpha(row, table.MISSING)[: 2 * merged],
        notes=notes + stamp_notes(grid, grid.names),
    )


def transfer_report(records: list[dict], protocol: str, methods: Methods = NONE) -> table.Report:
    """A table for each source. NoRuns if there is no evaluation."""
    grids, known, lines = transfer(records, protocol, methods), PROTOCOLS[protocol], []
    for grid in grids:
        for row, name in grid.names.items():
            cells = {(*grid.alpha(row), grid.source, column): summary for column, summary in grid.on(row).items()}
            lines += table.csv_lines(name, row, cells, stamp_cells(grid, row))
    return table.method_report(
        protocol,
        known.heading + shared_settings([row for grid in grids for row in grid.rows]),
        [_table(grid) for grid in grids],
        [
            f"{known.average}: mean over the targets, all columns but the first data set, which is the source",
            f"{table.BELOW}: below zero-shot CLIP on the same backbone",
            *(["alpha: weight of the fine-tuned model in the merge"] if any(line[5] for line in lines) else []),
        ],
        ["alpha", "alpha_chosen_on", "source", "dataset"],
        lines,
        STAMP_COLUMNS,
    )
