"""One self-contained HTML page of tables and figures: filters by method, data set and stamp, and a link from every
cell to the recorded facts of the runs behind it. It needs no network: style, script and pictures are in the file.

Facts repeat from run to run, so the page holds each (field, value) once and a list of numbers for each run; the
script writes them out when a run is opened. 500 runs take about 0.5 MB.
"""

import base64
import html
import json
import re
from importlib import resources
from pathlib import Path

from dassl.report.stamps import STAMPS, stamp
from dassl.utils import atomic_write

_HIDDEN = ("file", "written", "history")  # of a training run, hundreds of numbers
# What stands behind a method's name in some rows
_BEHIND = re.compile(r"(: (Transfer|Average|Last)|, task known)$")
_METHOD, _DATASET = "method", "data set"  # columns that rows are filtered by


def write_page(path, sheets, figures, records):
    """Sheets, figure files (PNG) and the records behind them -> the page at `path`."""
    runs = _Runs(records)
    names = _Names(sheets, records)
    parts = [
        _contents(sheets, figures),
        _filters(sheets, runs, names),
        *(_sheet(sheet, runs, names) for sheet in sheets),
        *_figures(figures),
        runs.section(),
    ]
    template = resources.files("dassl.report").joinpath("page.html").read_text(encoding="utf-8")
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(template.replace("<!-- content -->", "\n".join(parts)))
    return Path(path)


class _Names:
    """What can be filtered by. methods: the rows' names; datasets: those of the runs, a stream's tasks among them."""

    def __init__(self, sheets, records):
        tables = [table for sheet in sheets for table in sheet.tables if table.columns[0] == _METHOD]
        self.methods = list(dict.fromkeys(self.method(line[0]) for table in tables for line in table.rows))
        found = {name for r in records for name in (r.get("tasks") or [r["dataset"]])}
        shown = [name for sheet in sheets for table in sheet.tables for name in (table.title, *table.columns)]
        self.datasets = [name for name in dict.fromkeys([*shown, *sorted(found)]) if name in found]

    def method(self, cell):
        """The method that a row's first cell names."""
        return _BEHIND.sub("", cell)

    def of_title(self, title):
        """The method that a table is of, such as an accuracy matrix, or ""."""
        return max((m for m in self.methods if title.startswith(f"{m}, ")), key=len, default="")


class _Runs:
    """The records by their file, numbered; only those that a cell links to are on the page."""

    def __init__(self, records):
        self.records = {str(r["file"]): r for r in records}
        self.numbers = {}

    def anchors(self, files):
        """Files of a cell -> numbers of their sections."""
        known = [file for file in dict.fromkeys(files) if file in self.records]
        return [self.numbers.setdefault(file, len(self.numbers)) for file in known]

    def of(self, files):
        return [self.records[file] for file in files if file in self.records]

    def section(self):
        """One folded part a run, and the facts that the script puts into it."""
        pairs, facts = {}, []
        for file in self.numbers:
            shown = {"file": file} | {k: _value(v) for k, v in sorted(self.records[file].items()) if k not in _HIDDEN}
            facts.append([pairs.setdefault(pair, len(pairs)) for pair in shown.items()])
        folded = "\n".join(
            f"<details id=run{number}><summary>{_text(_title(self.records[file]))}</summary></details>"
            for file, number in self.numbers.items()
        )
        data = json.dumps({"pairs": list(pairs), "runs": facts}, ensure_ascii=False, separators=(",", ":"))
        return (
            f"<section id=runs><h2>Runs</h2>\n<div id=facts><button id=close type=button>Close</button>\n{folded}</div>"
            f'\n<script type="application/json" id=data>{data.replace("<", chr(92) + "u003c")}</script></section>'
        )


def _title(record):
    words = [record["trainer"], record["preset"], record["dataset"], record["subset"], f"seed {record['seed']}"]
    return ", ".join(filter(None, map(str, words)))


def _sheet(sheet, runs, names):
    tables = "\n".join(_table(table, runs, names) for table in sheet.tables)
    legend = "".join(f"<li>{_text(line)}</li>" for line in sheet.legend)
    return (
        f"<section class=sheet id={_anchor(sheet.name)}><h2>{_text(sheet.heading)}</h2>\n{tables}\n"
        f"<ul class=legend>{legend}</ul></section>"
    )


def _table(table, runs, names):
    """The table with what the filters look at: methods, data sets and stamps of the table, its rows and columns."""
    column = [f' data-dataset="{_text(name)}"' if name in names.datasets else "" for name in table.columns]
    head = "".join(f"<th{mark}>{_text(name)}</th>" for mark, name in zip(column, table.columns, strict=True))
    body = "\n".join(_row(table, number, line, runs, names) for number, line in enumerate(table.rows))
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    whole = f' data-dataset="{_text(table.title)}"' if table.title in names.datasets else ""
    return (
        f'<div class=table{whole} data-method="{_text(names.of_title(table.title))}"><h3>{_text(table.title)}</h3>'
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
        f"<ul class=notes>{notes}</ul></div>"
    )


def _row(table, number, line, runs, names):
    files = [file for cell in line for file in _files(cell)]
    stamps = sorted(_stamps(runs.of(files)))
    cells = []
    for place, (name, text) in enumerate(zip(table.columns, line, strict=True)):
        numbers, shown = runs.anchors(_files(text)), _text(text)
        if numbers:
            shown = f'<a href="#run{numbers[0]}" data-runs="{" ".join(map(str, numbers))}">{shown}</a>'
        tag, mark = "td" if place else "th", f' data-dataset="{_text(name)}"' if name in names.datasets else ""
        mark += f' title="{_text(chr(10).join(stamps))}"' if stamps and not place else ""  # shown under the pointer
        cells.append(f"<{tag}{mark}>{shown}</{tag}>")
    method = names.method(line[0]) if table.columns[0] == _METHOD else ""
    dataset = line[table.columns.index(_DATASET)] if _DATASET in table.columns else ""
    attributes = f'data-method="{_text(method)}" data-stamps="{_text("|".join(stamps))}"'
    attributes += f' data-dataset="{_text(dataset)}"' if dataset in names.datasets else ""
    return f"<tr {attributes}>{''.join(cells)}</tr>"


def _files(cell):
    """The results.json behind a table's cell, where they are known."""
    return getattr(cell, "files", ())


def _stamps(records):
    """What the stamps of a row's runs say, in words."""
    return {f"{head}: {words}" for r in records for name, head in STAMPS.items() if (words := stamp(r, name))}


def _contents(sheets, figures):
    """Links to the parts of the page."""
    parts = {_anchor(sheet.name): sheet.heading for sheet in sheets}
    parts |= {"figures": "Figures"} if _pictures(figures) else {}
    links = "".join(f'<li><a href="#{anchor}">{_text(name)}</a></li>' for anchor, name in parts.items())
    return f"<nav><ul>{links}</ul></nav>"


def _filters(sheets, runs, names):
    """One list of choices each for method, data set and stamp."""
    tables = [table for sheet in sheets for table in sheet.tables]
    files = dict.fromkeys(file for table in tables for line in table.rows for cell in line for file in _files(cell))
    stamps = sorted(_stamps(runs.of(files)))
    groups = {head: [words for words in stamps if words.startswith(f"{head}: ")] for head in STAMPS.values()}
    choices = [
        _choice("method", "Method", {"": names.methods}),
        _choice("dataset", "Data set", {"": names.datasets}),
        _choice("stamp", "Stamp", groups),
    ]
    return f"<form id=filters>{''.join(choices)}<button type=reset>Show all</button></form>"


def _choice(key, name, groups):
    """A list of choices. groups: {heading of a group, or "": values}."""
    options = ""
    for head, values in groups.items():
        own = "".join(
            f'<option value="{_text(value)}">{_text(value.removeprefix(f"{head}: "))}</option>' for value in values
        )
        options += f'<optgroup label="{_text(head)}">{own}</optgroup>' if head and values else own
    return f"<label>{name} <select id={key}><option value=''>all</option>{options}</select></label>"


def _figures(files):
    pictures = _pictures(files)
    if pictures:
        yield "<h2 id=figures>Figures</h2>"
    for file in pictures:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        name = _text(file.stem.replace("_", " "))
        numbers = f" (numbers: {_text(file.stem)}.csv)" if file.with_suffix(".csv").is_file() else ""
        yield (
            f'<figure><img alt="{name}" loading=lazy src="data:image/png;base64,{data}">'
            f"<figcaption>{name}{numbers}</figcaption></figure>"
        )


def _pictures(files):
    return [file for file in map(Path, files) if file.suffix == ".png"]


def _anchor(name):
    return "sheet-" + re.sub(r"\W+", "-", name)


def _value(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value):
    return html.escape(str(value), quote=True)
