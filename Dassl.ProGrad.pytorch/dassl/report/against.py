"""Published accuracies beside ours: in the band or out of it, and which recorded facts differ.

Band: twice the published deviation where one is known; else 1.0 point for a data set, 0.5 for an average. The
published numbers are blocks of `published/*.json`, one a method and source: {protocol, trainer, merge, source,
values {data set: number, or {quantity: number or [number, deviation]}}, facts {field of results.json: value}}.
"""

import json
from dataclasses import dataclass, field
from importlib import resources

from dassl.report.methods import row_of
from dassl.report.sheet import Sheet
from dassl.report.tables import Table
from dassl.utils import UserError

FORMAT = 1
ONE, AVERAGE = 1.0, 0.5  # half width of the band in points
AVERAGES = ("average", "Avg-C", "Avg-D", "Transfer", "Average", "Last")
NEEDED = {"trainer", "preset", "backbone", "mean", "std"}  # columns of a sheet that can be compared
COLUMNS = ["method", "data set", "quantity", "ours", "n", "published", "difference", "band", ""]
RULE = (
    f"band: 2 x the published deviation where there is one, else {ONE:.1f} point for a data set and {AVERAGE:.1f} "
    "for an average"
)


@dataclass(frozen=True)
class Published:
    """One number of a paper. facts: what is known of the run behind it."""

    value: float
    deviation: float | None
    source: str
    facts: dict = field(default_factory=dict)

    def band(self, dataset):
        """Half width in points."""
        if self.deviation is not None:
            return 2 * self.deviation
        return AVERAGE if dataset in AVERAGES else ONE


def load_published():
    """All blocks -> {(protocol, trainer, merge, backbone, data set, quantity): Published}."""
    found = {}
    for file in sorted(resources.files("dassl.report.published").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            for block in content["blocks"]:
                found |= _read_block(block, content["backbone"])
    return found


def _read_block(block, backbone):
    numbers = {}
    for dataset, quantities in block["values"].items():
        quantities = quantities if isinstance(quantities, dict) else {"": quantities}
        for quantity, number in quantities.items():
            value, deviation = number if isinstance(number, list) else (number, None)
            key = (block["protocol"], block["trainer"], block.get("merge", ""), backbone, dataset, quantity)
            numbers[key] = Published(value, deviation, block["source"], block.get("facts", {}))
    return numbers


def against_sheet(sheet, records, methods, published=None):
    """A protocol's Sheet -> a Sheet of its numbers beside published ones. UserError if none has a partner.

    records: those that the sheet was made of, for the facts that differ.
    """
    published = load_published() if published is None else published
    rows, lines, notes, sources, files, matched = [], [], [], {}, {}, {}
    columns = set(sheet.columns)
    comparable = columns >= NEEDED and columns & {"dataset", "task"}  # not a table of barriers, say
    for line in sheet.lines if comparable else []:
        cell = _named(dict(zip(sheet.columns, line, strict=True)))
        key = _key(sheet.name, cell, methods)
        partner = published.get(key)
        if partner is None or cell["mean"] == "":
            continue
        own = [r for r in records if r["kind"] == "eval" and _is_row(r, cell, methods)]
        line = _row(cell, partner)
        files[len(rows), 3] = _files(own, sheet.name, cell)
        rows.append([*line[:4], cell["n"], *line[4:]])
        lines.append([*line, partner.source, cell["n"]])
        sources.setdefault(partner.source, None)
        matched.setdefault(cell["method"], set()).add(key)
        notes += [note for note in _differing(cell, partner, own) if note not in notes]
    if not rows:
        raise UserError(f"--against paper: none of the {sheet.name} results has a published partner")
    out = sum(row[-1] == "out" for row in rows)
    title = f"{len(rows) - out} of {len(rows)} in the band"
    return Sheet(
        name=f"{sheet.name}_against_paper",
        heading=f"{sheet.heading}, against published numbers",
        tables=[Table(title, COLUMNS, rows, notes + _missing(matched, published), files)],
        legend=[RULE, "n: our seeds", f"published: {'; '.join(sources)}"],
        columns=["method", "dataset", "quantity", "ours", "published", "difference", "band", "verdict", "source", "n"],
        lines=lines,
    )


def _files(own, protocol, cell):
    """The results.json behind one of our numbers, as far as its protocol, data set and subset tell."""
    subsets = (cell["quantity"],) if cell["quantity"] in ("base", "new") else ("base", "new", "all")
    of_dataset = [r for r in own if r["protocol"] == protocol and r["subset"] in subsets]
    if cell["dataset"] not in AVERAGES:
        of_dataset = [r for r in of_dataset if cell["dataset"] in (r["dataset"], *(r.get("tasks") or ()))]
    return [str(r["file"]) for r in of_dataset]


def _missing(matched, published):
    """Data sets with a published number and no run here -> a line for each method. matched: {method: keys}."""
    notes = []
    for method, keys in matched.items():
        ours = {key[4] for key in keys}
        theirs = {key[4] for key in published if key[:4] in {own[:4] for own in keys}} - {*AVERAGES}
        if gaps := sorted(theirs - ours):
            notes.append(f"{method}: published, but not run here: {', '.join(gaps)}.")
    return notes


def _named(cell):
    """A CSV line with `dataset` and `quantity`; of streams these are the task and, say, "transfer I target"."""
    if "task" not in cell:
        return {"quantity": "", **cell}
    words = [cell["quantity"], cell["order"], cell["labels"], cell["after"]]
    return cell | {"dataset": cell["task"] or "average", "quantity": " ".join(filter(None, words))}


def _key(protocol, cell, methods):
    """Where the published partner of a CSV line would stand."""
    if "task" in cell:
        space = next((name for name in ("LoRA", "FT") if f"({name}" in cell["method"]), "")
        words = [space, f"{cell['shots']} shots" if int(cell["shots"] or 0) > 0 else ""]
        made = ", ".join(filter(None, words))
        return protocol, cell["trainer"], made, cell["backbone"], cell["dataset"], cell["quantity"]
    printed = cell["preset"].split(" + ")[-1]
    merge = next((key for key, name in methods.merges.items() if printed.startswith(f"{name} (")), "")
    return protocol, cell["trainer"], merge, cell["backbone"], cell["dataset"], cell["quantity"]


def _row(cell, partner):
    ours, band = float(cell["mean"]), partner.band(cell["dataset"])
    difference = round(ours - partner.value, 2)
    verdict = "in" if abs(difference) <= band + 1e-9 else "out"
    shown = f"{ours:.2f}" + (f" ± {cell['std']}" if cell["std"] else "")
    names = [cell["method"], cell["dataset"], cell["quantity"]]
    return [*names, shown, f"{partner.value:.2f}", f"{difference:+.2f}", f"{band:.2f}", verdict]


def _differing(cell, partner, own):
    """Facts of our runs that are not those of the published one, and what our own runs disagree on -> lines."""
    notes = []
    for name, wanted in partner.facts.items():
        found = sorted({str(r[name]) for r in own if r.get(name) not in (None, wanted)})
        if found:
            notes.append(f"{cell['method']}: {name} {', '.join(found)}, published with {wanted}.")
    for name in ("precision", "split_digest", "versions"):
        by_dataset = {}
        for record in own:
            by_dataset.setdefault(record["dataset"], set()).add(json.dumps(record.get(name), sort_keys=True))
        if any(len(values) > 1 for values in by_dataset.values()):
            notes.append(f"{cell['method']}: its seeds differ in {name}.")
    return notes


def _is_row(record, cell, methods):
    row = row_of(record, methods)
    made = " + ".join(filter(None, [row.preset, row.merge]))
    return (row.trainer, made, row.backbone) == (cell["trainer"], cell["preset"], cell["backbone"])
