"""Fairness stamps: what makes rows unlike each other beside the method, and the footnotes that say so.

A stamp is a field of results.json. Two rows differ in it if they do on a data set that both have; a data set's own
template, say, is no difference as long as every row uses it there.
"""

import re
from collections import Counter

from dassl.report.frame import Grid
from dassl.report.methods import EACH_TEMPLATE, Row, sees_no_data

# Field of results.json -> words before its value.
STAMPS = {
    "data_seen": "Trained on",
    "chosen_on": "Checkpoint chosen on",
    "alpha_chosen_on": "Weight of a merge chosen on",
    "templates": "Prompts",
}
# Rows that a field says something of, where most of them agree; others are "all other trained rows".
_MOST = {"alpha_chosen_on": "all other merges", "templates": "all other rows"}
STAMP_COLUMNS = [f"stamp_{name}" for name in STAMPS]  # of a CSV
FEWER = " (fewer in {})"  # in what was trained on: how many classes have fewer images than shots
_FEWER = re.compile(re.escape(FEWER).replace(r"\{\}", "(.*?)"))
MANY = 4  # rows that share a value, from which on they are not named one by one
FEW = 3  # data sets that are named one by one
EACH = "each data set's own"


def stamp(record: dict, name: str) -> str | None:
    """What a record's field says, in words, or None. Nothing was chosen or trained in a zero-shot run."""
    value = record.get(name)
    if value in (None, "", "none", []) or (name != "templates" and sees_no_data(record)):
        return None
    if name == "alpha_chosen_on" and value == "given":
        return "nothing (given)"
    if isinstance(value, list):
        if len(value) > 1:
            return f"mean of {value[0]!r} and {len(value) - 1} others"
        value = value[0]
    value = str(value)
    return repr(value) if name == "templates" and "{}" in value and "'" not in value else value


def stamps_of(grid: Grid, row: Row, name: str) -> dict[str, str]:
    """What a field says of a row's runs -> {data set: words}."""
    words: dict = {}
    measured = [grid.runs.get((row, column), ()) for column in grid.columns]  # what is worked out has others' runs too
    for run in (run for runs in measured for run in runs):
        if text := stamp(run, name):
            words.setdefault(run["dataset"], set()).add(_FEWER.sub("", text))
    return {dataset: " or ".join(sorted(texts)) for dataset, texts in words.items()}


def names_on(dataset: str | None, grid: Grid) -> dict[Row, str]:
    """A Grid's names for a table of one data set: its template where a row has each data set's own."""
    names = grid.names
    for row in (row for row in grid.rows if row.preset == EACH_TEMPLATE):
        templates: dict = stamps_of(grid, row, "templates")
        names[row] = names[row].replace(EACH_TEMPLATE, templates.get(dataset, EACH_TEMPLATE).strip("'"))
    return names


def stamp_notes(grid: Grid, names: dict[Row, str]) -> list[str]:
    """A line for each stamp in which rows differ. names: {row: printed}."""
    notes = []
    for name, head in STAMPS.items():
        groups, most_rows = _groups(grid, name), _MOST.get(name, "all other trained rows")
        if len(groups) > 1:
            most = max(groups, key=lambda group: len(group[1]))
            groups.sort(key=lambda group: group is most and len(most[1]) >= MANY)  # "all others" stand last
            shown, reference = [], None
            for values, rows in groups:
                words = _words(values, reference)
                reference = values if reference is None and words == EACH else reference
                many = values is most[0] and len(rows) >= MANY
                shown.append(f"{words}: {most_rows if many else ', '.join(names[row] for row in rows)}")
            notes.append(f"{head} {'; '.join(shown)}.")
    seen = [(run["dataset"], stamp(run, "data_seen") or "") for runs in grid.runs.values() for run in runs]
    if fewer := {f"{dataset}: {text}" for dataset, words in seen for text in _FEWER.findall(words)}:
        notes.append(f"Fewer training images than shots on {'; '.join(sorted(fewer))}.")
    return notes


def stamp_cells(grid: Grid, row: Row) -> list[str]:
    """A row's stamps for a CSV, in the order of STAMP_COLUMNS, "" for none."""
    values = [stamps_of(grid, row, name) for name in STAMPS]
    return [_words(by_dataset, None) if by_dataset else "" for by_dataset in values]


def _groups(grid, name):
    """Rows that agree in a stamp on all data sets that both have; without one, if they say the same -> list of
    ({data set: words}, rows)."""
    groups = []
    for row in grid.rows:
        values = stamps_of(grid, row, name)
        for known, rows in groups if values else ():
            shared = known.keys() & values.keys()
            if all(known[d] == values[d] for d in shared) and (shared or {*known.values()} == {*values.values()}):
                known.update(values)
                rows.append(row)
                break
        else:
            groups += [(values, [row])] if values else []
    return groups


def _words(by_dataset, reference):
    """{data set: words} in short. reference: of an earlier group that has each data set's own, or None."""
    (most, count), *others = Counter(by_dataset.values()).most_common()
    if not others:
        return most
    usual = dict.fromkeys(by_dataset, most) if 2 * count > len(by_dataset) else reference
    if usual is None:
        return EACH
    unlike = [dataset for dataset, words in by_dataset.items() if usual.get(dataset) != words]
    where = ", ".join(f"on {dataset}: {by_dataset[dataset]}" for dataset in sorted(unlike))
    where = f"others on {len(unlike)} data sets" if len(unlike) > FEW else where
    return f"{EACH}, but {where}" if usual is reference else f"{most} ({where})"
