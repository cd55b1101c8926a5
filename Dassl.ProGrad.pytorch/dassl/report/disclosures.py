"""Fairness stamps: what makes rows unlike each other beside the method, and the footnotes that say so.

A stamp is a field of results.json. Two rows differ in it if they do on a column that both have; a data set's own
template, say, is no difference as long as every row uses it there.
"""

import re
from collections import Counter

from dassl.report.methods import sees_no_data

# Field of results.json -> words before its value.
STAMPS = {
    "data_seen": "Trained on",
    "chosen_on": "Checkpoint chosen on",
    "alpha_chosen_on": "Weight of a merge chosen on",
    "templates": "Prompts",
}
# Rows that a field says something of, where most of them agree.
_MOST = {
    "data_seen": "all other trained rows",
    "chosen_on": "all other trained rows",
    "alpha_chosen_on": "all other merges",
    "templates": "all other rows",
}
STAMP_COLUMNS = [f"stamp_{name}" for name in STAMPS]  # of a CSV
FEWER = " (fewer in {})"  # in what was trained on: how many classes have fewer images than shots
_FEWER = re.compile(re.escape(FEWER).replace(r"\{\}", "(.*?)"))
MANY = 4  # rows that share a value, from which on they are not named one by one
FEW = 3  # data sets that are named one by one
EACH = "each data set's own"


def stamp(record, name):
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


def collect(records, row_of, column_of):
    """Stamps of records -> {row: {field: {column: set of words}}}."""
    stamps = {}
    for record in records:
        for name in STAMPS:
            if words := stamp(record, name):
                fields = [(name, _FEWER.sub("", words)), *(("fewer", text) for text in _FEWER.findall(words))]
                for field, text in fields:
                    columns = stamps.setdefault(row_of(record), {}).setdefault(field, {})
                    columns.setdefault(column_of(record), set()).add(text)
    return stamps


def stamp_notes(grid, names):
    """A line for each stamp in which rows differ -> list of str. grid: with rows and stamps; names: {row: printed}."""
    notes = []
    for name, head in STAMPS.items():
        groups = _groups(grid, name)
        if len(groups) > 1:
            most = max(groups, key=lambda group: len(group[1]))
            groups.sort(key=lambda group: group is most and len(most[1]) >= MANY)  # "all others" stand last
            shown, reference = [], None
            for values, rows in groups:
                words = _words(values, reference)
                reference = values if reference is None and words == EACH else reference
                many = values is most[0] and len(rows) >= MANY
                shown.append(f"{words}: {_MOST[name] if many else ', '.join(names[row] for row in rows)}")
            notes.append(f"{head} {'; '.join(shown)}.")
    fewer = [_by_dataset(_joined(grid.stamps.get(row, {}).get("fewer", {}))) for row in grid.rows]
    fewer = {f"{dataset}: {words}" for by_dataset in fewer for dataset, words in by_dataset.items()}
    if fewer:
        notes.append(f"Fewer training images than shots on {'; '.join(sorted(fewer))}.")
    return notes


def stamp_cells(grid):
    """A row's stamps for a CSV, in the order of STAMP_COLUMNS -> function: row -> list of str, "" for none."""

    def cells(row):
        stamps = grid.stamps.get(row, {})
        return [_words(_joined(stamps[name]), None) if name in stamps else "" for name in STAMPS]

    return cells


def _joined(columns):
    """{column: set of words} -> {column: words}."""
    return {column: " or ".join(sorted(words)) for column, words in columns.items()}


def _by_dataset(values):
    """{column: words} by the column's data set."""
    return {column if isinstance(column, str) else column[0]: words for column, words in values.items()}


def _groups(grid, name):
    """Rows that agree in a stamp wherever both have a column; without such a column, if they say the same -> list of
    ({column: words}, rows)."""
    groups = []
    for row in grid.rows:
        values = _joined(grid.stamps.get(row, {}).get(name, {}))
        for known, rows in groups if values else ():
            shared = known.keys() & values.keys()
            if all(known[c] == values[c] for c in shared) and (shared or {*known.values()} == {*values.values()}):
                known.update(values)
                rows.append(row)
                break
        else:
            groups += [(values, [row])] if values else []
    return groups


def _words(values, reference):
    """{column: words} in short. reference: of an earlier group that has each data set's own, or None."""
    by_dataset = _by_dataset(values)
    (most, count), *others = Counter(by_dataset.values()).most_common()
    if not others:
        return most
    if reference is None and 2 * count <= len(by_dataset):
        return EACH
    usual = dict.fromkeys(by_dataset, most) if 2 * count > len(by_dataset) else _by_dataset(reference)
    unlike = [dataset for dataset, words in by_dataset.items() if usual.get(dataset) != words]
    where = ", ".join(f"on {dataset}: {by_dataset[dataset]}" for dataset in sorted(unlike))
    where = f"others on {len(unlike)} data sets" if len(unlike) > FEW else where
    return f"{most} ({where})" if 2 * count > len(by_dataset) else f"{EACH}, but {where}"
