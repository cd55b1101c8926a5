"""Published accuracies beside ours: in the band or out of it, or why a pair is not judged.

Band: twice the published deviation where one is known; else 1.0 point for a data set, 0.5 for an average. The
published numbers lie beside the methods, in JSON files of blocks, one a method and source: {protocol, trainer, merge,
source, values {data set: number, or {quantity: number or [number, deviation]}}, facts {field of results.json: what
decides whether runs may be compared, the same for all data sets or {data set: it}; null where the source does not
state it}, derived (true: computed from published numbers)}. `sets` of a file: what each protocol's averages are over.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dassl.report.methods import Methods, is_control, named_weights, row_of
from dassl.report.protocols.sweeps import epochs_asked
from dassl.report.records import NoRuns
from dassl.report.table import MISSING, Cell, Report, Table

ONE, AVERAGE = 1.0, 0.5  # half width of the band in points
AVERAGES = ("average", "Avg-C", "Avg-D", "Transfer", "Average", "Last")
COLUMNS = ["method", "data set", "quantity", "ours", "n", "published", "difference", "band", "verdict", "source"]
RULE = f"band: {ONE:.1f} point for a data set, {AVERAGE:.1f} for an average, 2 x the published deviation if it has one"
SILENT = (
    f"{MISSING} (fact): not judged, for our runs and the published ones differ in it, or one of them does not say it"
)


@dataclass(frozen=True)
class Published:
    """One number of a paper."""

    value: float
    deviation: float | None
    source: str
    facts: dict = field(default_factory=dict)  # what decides whether a run may be compared with it
    sets: frozenset = frozenset()  # that an average is over
    derived: bool = False  # computed from published numbers

    def band(self, dataset: str) -> float:
        """Half width in points."""
        if self.deviation is not None:
            return 2 * self.deviation
        return AVERAGE if dataset in AVERAGES else ONE


def load_published(files: Iterable[Path]) -> dict[tuple, list[Published]]:
    """All blocks of these files -> {(protocol, trainer, merge, backbone, data set, quantity): one Published a source}.

    The quantity of a few-shot number is its shots, e.g. "16 shots".
    """
    numbers: dict = {}
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        for block in content["blocks"]:
            head = block["protocol"], block["trainer"], block.get("merge", ""), content["backbone"]
            sets = frozenset(content.get("sets", {}).get(block["protocol"], ()))
            about = block["source"], block.get("facts", {}), sets, block.get("derived", False)
            for dataset, quantities in block["values"].items():
                for quantity, number in (quantities if isinstance(quantities, dict) else {"": quantities}).items():
                    value, deviation = number if isinstance(number, list) else (number, None)
                    numbers.setdefault((*head, dataset, quantity), []).append(Published(value, deviation, *about))
    return numbers


def against_report(
    report: Report, records: list[dict], methods: Methods, published: Mapping[tuple, list[Published]] | None = None
) -> Report:
    """A protocol's Report -> a Report of its numbers beside published ones. NoRuns if none has a partner.

    records: those that the report was made of, for the facts that differ.
    """
    published = load_published(methods.published) if published is None else published
    by_file = {str(record["file"]): record for record in records}
    rows, lines, notes, sources, matched = [], [], [], {}, {}
    for line in report.lines:
        cell = dict(zip(report.columns, line, strict=True))
        key, behind = _key(report.name, cell, methods), cell["mean"].files
        runs = [by_file[file] for file in dict.fromkeys(behind) if file in by_file]
        # nobody publishes training on without the method, or weights that no rule chose
        unheard = is_control(cell["preset"].split(" + ")[0]) or any(map(named_weights, runs))
        for partner in published.get(key, []) if cell["mean"] != "" and not unheard else []:
            matched.setdefault(cell["method"], set()).add(key)
            datasets = {name for record in runs for name in record.get("tasks") or [record["dataset"]]}
            if key[4] in AVERAGES and partner.sets and datasets != partner.sets:
                more = "".join(f", with {name}" for name in sorted(datasets - partner.sets))
                over = f"published over {len(partner.sets)} data sets, ours over {len(datasets)}{more}"
                notes.append(f"{cell['method']}: averages are not compared: {over}.")
                continue
            differing = _differing(partner, runs, methods)
            notes += [f"{cell['method']}: {words}" for words in differing.values()]
            number = sources.setdefault(partner.source, len(sources) + 1)
            shown = f"{float(cell['mean']):.2f}" + (f" ± {cell['std']}" if cell["std"] else "")
            head = [cell["method"], *key[4:], Cell(shown, behind)]
            compared, is_in = _compared(float(cell["mean"]), partner, key[4])
            verdict = "" if differing else "in" if is_in else "out"
            said = verdict or f"{MISSING} ({', '.join(differing)})"
            rows.append([*head, cell["n"], *compared, said, f"[{number}]"])
            lines.append([*head, *compared, verdict, ", ".join(differing), partner.source, cell["n"]])
        notes += [f"{cell['method']}: {words}" for words in _uneven(runs)] if key in published else []
    notes = [*dict.fromkeys(notes), *_not_run(matched, published)]
    if not rows:
        reason = f"--against paper: none of the {report.name} results has a published partner"
        raise NoRuns("; ".join([reason, *notes]))
    judged = [line[7] for line in lines if line[7]]
    left = f", {len(rows) - len(judged)} not judged" if len(rows) > len(judged) else ""
    return Report(
        name=f"{report.name}_against_paper",
        heading=f"{report.heading}, against published numbers",
        tables=[Table(f"{judged.count('in')} of {len(judged)} in the band{left}", COLUMNS, rows, notes)],
        legend=[RULE, SILENT, "n: our seeds", *(f"[{number}] {source}" for source, number in sources.items())],
        columns=[*COLUMNS[:1], "dataset", "quantity", "ours", "published", "difference", "band", "verdict", "differs",
                 "source", "n"],
        lines=lines,
    )  # fmt: skip


def _compared(ours, partner, dataset):
    """The columns published, difference and band of a number, and whether it is in the band."""
    band, difference = partner.band(dataset), round(ours - partner.value, 2)
    columns = [f"{partner.value:.2f}{' (derived)' * partner.derived}", f"{difference:+.2f}", f"{band:.2f}"]
    return columns, abs(difference) <= band + 1e-9


def _not_run(matched, published):
    """A line for each method of which more is published. matched: {method: keys that were compared}."""
    for method, keys in matched.items():
        others = {key[4] for key in published if key[:4] in {known[:4] for known in keys}} - {*AVERAGES}
        if gaps := sorted(others - {key[4] for key in keys}):
            yield f"{method}: published, but not run here: {', '.join(gaps)}."


def _key(protocol, cell, methods):
    """Where the published partners of a CSV line would stand: of streams the data set is the task, the quantity, say,
    "transfer I target"."""
    if "task" in cell:
        space = next((name for name in ("LoRA", "FT") if f"({name}" in cell["method"]), "")
        made = ", ".join(filter(None, [space, f"{cell['shots']} shots" if int(cell["shots"] or 0) > 0 else ""]))
        words = [cell["quantity"], cell["order"], cell["labels"], cell["after"]]
        number = cell["task"] or "average", " ".join(filter(None, words))
    else:
        printed = cell["preset"].split(" + ")[-1]
        made = next((key for key, name in methods.merges.items() if printed.startswith(f"{name} (")), "")
        shots = "" if "source" in cell else f"{cell['shots']} shot{'s' * (cell['shots'] != 1)}"
        number = cell["dataset"], cell.get("quantity", shots)
    return protocol, cell["trainer"], made, cell["backbone"], *number


def _differing(partner, runs, methods):
    """Why our runs may not be judged by a published number -> {fact: the difference in words}, empty if they may."""
    differing = {"derived": "a number was computed from published ones, and is none itself."} if partner.derived else {}
    if left := {record["unfinished"] for record in runs if record.get("unfinished")}:
        differing["unfinished"] = f"{', '.join(sorted(left))}."
    if other := {record["split_file"] for record in runs if record.get("split_file")}:
        differing["split"] = f"split {', '.join(sorted(other))}, published with the published one."
    for name, wanted in partner.facts.items():
        stated, recorded = set(), set()
        for record in runs:
            value, fact = wanted.get(record["dataset"]) if isinstance(wanted, dict) else wanted, record
            if name == "epochs":
                fact = epochs_asked(record)
            elif name == "preset":
                fact = row_of(record, methods).preset
            else:
                for part in name.split("."):  # a dot leads into a field
                    fact = fact.get(part) if isinstance(fact, dict) else None
            if value is None or fact != value:
                stated.add("not stated there" if value is None else f"published with {value}")
                recorded.add("not stated here" if fact in (None, "") else str(fact))
        if stated:
            differing[name] = f"{name} {', '.join(sorted(recorded))}, {', '.join(sorted(stated))}."
    return differing


def _uneven(runs):
    """What our own seeds do not agree on -> lines."""
    for name in ("precision", "split_digest", "versions"):
        pairs = {(record["dataset"], json.dumps(record.get(name), sort_keys=True)) for record in runs}
        if len(pairs) > len({record["dataset"] for record in runs}):
            yield f"its seeds differ in {name}."
