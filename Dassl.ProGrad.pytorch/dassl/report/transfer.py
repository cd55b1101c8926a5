"""Trained on one data set, evaluated on others: cross-data-set, domain generalisation, robust fine-tuning.

One table per source: the source's own test set, each target, and the average over the targets (Avg-C in the
cross-data-set protocol, Avg-D over shifted test sets). Zero-shot CLIP has no source, so its runs on all
classes of a column count in every table, whatever protocol they were made for.
"""

from dataclasses import dataclass, field

from dassl.report.grid import Grid, build, is_below, with_accuracy, without_repeats
from dassl.report.methods import (
    CSV_HEAD,
    Methods,
    chosen_alpha,
    csv_head,
    merge_values,
    row_names,
    row_of,
    sees_no_data,
    shared_settings,
    split_by_template,
    zero_shot_row,
)
from dassl.report.results import group_by, is_number, select
from dassl.report.sheet import EVALUATIONS_LEGEND, SEEDS_LEGEND, Sheet
from dassl.report.stamps import STAMP_COLUMNS, stamp_cells, stamp_notes
from dassl.report.tables import BELOW, MISSING, Table, csv_numbers, show, show_n
from dassl.utils import UserError

SUBSET = "all"


@dataclass(frozen=True)
class Protocol:
    """name: in results.json; heading: of its sheet; average: name of the mean over targets; also: protocols whose
    runs on the source's own test set count here too."""

    name: str
    heading: str
    average: str
    also: tuple = ()


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("cross", "Cross-data-set accuracy in percent", "Avg-C", ("dg",)),
        Protocol("dg", "Domain generalisation, accuracy in percent", "Avg-D", ("cross",)),
        Protocol("robust", "Robust fine-tuning, accuracy in percent", "Avg-D"),
    )
}


@dataclass
class Transfer:
    """What was trained on one data set. grid: its columns are data sets, the source first; alphas: {row: [(alpha,
    what it was chosen on)]}."""

    source: str
    grid: Grid
    methods: Methods
    alphas: dict = field(default_factory=dict)

    @property
    def targets(self):
        """All data sets but the source."""
        return [name for name in self.grid.columns if name != self.source]

    def below(self, row):
        """Data sets on which a row is below zero-shot CLIP on the same backbone."""
        reference = zero_shot_row(row, self.grid.rows, self.methods)
        if reference is None:
            return []
        cell = self.grid.cell
        return [name for name in self.grid.columns if is_below(cell(row, name), cell(reference, name))]


def transfer(records, protocol, methods=None):
    """Records of `load_results` -> list of Transfer, one per source. UserError if there is no evaluation.

    protocol: a key of PROTOCOLS.
    """
    methods, known = methods or Methods(), PROTOCOLS[protocol]
    runs = split_by_template(with_accuracy(records, subset=SUBSET), methods)
    own = select(runs, protocol=protocol)
    trained = [r for r in own if not sees_no_data(r)]
    zero_shot = [r for r in select(runs, kind="eval") if sees_no_data(r)]
    if not select(own, kind="eval"):
        raise UserError(
            f"No {protocol} table: of {len(records)} results, {len(own)} follow the protocol {protocol!r} on all "
            "classes and none of these is an evaluation run"
        )
    found = []
    for source, group in group_by(trained, source_of).items() or [("", own)]:
        names = {r["dataset"] for r in group if r["kind"] == "eval"} | ({source} - {""})
        lent = [r for r in select(runs, protocol=known.also, dataset=source, kind="eval") if source_of(r) == source]
        lent += [r for r in zero_shot if r["dataset"] in names]
        group = without_repeats(group, lent, lambda r: (row_of(r, methods), r["dataset"], r["seed"]))
        found.append(_one_source(source, group, methods))
    return found


def _one_source(source, records, methods):
    grid = build(
        records,
        row_of=lambda r: row_of(r, methods),
        column_of=lambda r: r["dataset"],
        methods=methods,
        column_key=lambda name: (name != source, methods.dataset_rank(name)),
    )
    alphas = {}
    for record in records:
        if (alpha := alpha_of(record)) is not None:
            alphas.setdefault(row_of(record, methods), set()).add((alpha, chosen_alpha(record) or "given"))
    return Transfer(source, grid, methods, {row: sorted(found) for row, found in alphas.items()})


def source_of(record):
    """The data set that a record's weights were trained on; its own where the file does not say."""
    return record.get("source") or record["dataset"]


def alpha_of(record):
    """The weight of the fine-tuned model in a merge with the zero-shot one, or None."""
    alpha = merge_values(record).get("alpha")
    return alpha if is_number(alpha) else None


def _table(found, average):
    """-> Table with columns method, [alpha, chosen on], source, targets, average, n."""
    grid, names, rows, notes, files = found.grid, row_names(found.grid.rows), [], [], {}
    for number, row in enumerate(grid.rows):
        reference = zero_shot_row(row, grid.rows, found.methods)
        mean = grid.average(row, found.targets)
        low = is_below(mean, grid.average(reference, found.targets)) if reference else False
        below, cells = found.below(row), [grid.cell(row, name) for name in grid.columns]
        numbers = [show(s, name in below) for name, s in zip(grid.columns, cells, strict=True)]
        alphas = _alpha_cells(found.alphas.get(row)) if found.alphas else []
        rows.append([names[row], *alphas, *numbers, show(mean, low), show_n([*cells, mean])])
        notes += _notes(found, row, names[row], average)
        for place, behind in enumerate([*([name] for name in grid.columns), found.targets], start=1 + len(alphas)):
            files[number, place] = grid.files_of(row, behind)
    columns = ["method", *(["alpha", "chosen on"] if found.alphas else []), *grid.columns, average, "n"]
    title = f"Trained on {found.source}" if found.source else "Zero-shot"
    return Table(title, columns, rows, notes + stamp_notes(grid, names), files)


def _alpha_cells(found):
    """[(alpha, chosen on)] -> two cells; a range where seeds chose differently."""
    if not found:
        return [MISSING, MISSING]
    values = sorted({alpha for alpha, _ in found})
    shown = f"{values[0]:g}" + (f" to {values[-1]:g}" if len(values) > 1 else "")
    return [shown, ", ".join(sorted({chosen for _, chosen in found}))]


def _notes(found, row, name, average):
    notes = []
    if gaps := found.grid.missing(row, found.targets):
        hints = [f"{g}; trained, not evaluated" if (row, g) in found.grid.trained else g for g in gaps]
        notes.append(f"{name}: no {average}, a target is missing: {', '.join(hints)}.")
    if found.grid.uneven(row):
        notes.append(
            f"{name}: data sets have different seeds; {average} uses all of them, its deviation and n only the "
            "seeds that all targets share."
        )
    if below := found.below(row):
        notes.append(f"{name}: below zero-shot on: {', '.join(below)}.")
    return notes


def transfer_sheet(records, protocol, methods=None):
    """Records -> Sheet with a table for each source."""
    found, known = transfer(records, protocol, methods), PROTOCOLS[protocol]
    settings = shared_settings([row for one in found for row in one.grid.rows])
    return Sheet(
        name=protocol,
        heading=known.heading + (f" ({settings})" if settings else ""),
        tables=[_table(one, known.average) for one in found],
        legend=[
            SEEDS_LEGEND,
            f"{known.average}: mean over the targets, all columns but the first data set, which is the source",
            f"{BELOW}: below zero-shot CLIP on the same backbone",
            *(["alpha: weight of the fine-tuned model in the merge"] if any(one.alphas for one in found) else []),
            EVALUATIONS_LEGEND,
        ],
        columns=[*CSV_HEAD, "alpha", "alpha_chosen_on", "source", "dataset", "mean", "std", "n", *STAMP_COLUMNS],
        lines=[line for one in found for line in _csv_lines(one, known.average)],
        files=[
            one.grid.files_of(row, columns)
            for one in found
            for row in one.grid.rows
            for columns in (*([name] for name in one.grid.columns), one.targets)
        ],
    )


def _csv_lines(found, average):
    grid, names, lines = found.grid, row_names(found.grid.rows), []
    for row in grid.rows:
        alphas = _alpha_cells(found.alphas[row]) if row in found.alphas else ["", ""]
        cells = {name: grid.cell(row, name) for name in grid.columns} | {average: grid.average(row, found.targets)}
        lines += [
            [*csv_head(row, names), *alphas, found.source, name, *csv_numbers(summary), *stamp_cells(grid, row)]
            for name, summary in cells.items()
        ]
    return lines
