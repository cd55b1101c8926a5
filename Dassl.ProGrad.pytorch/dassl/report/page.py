"""One self-contained HTML page of tables and figures: filters by method, data set and stamp, and a link from every
cell to the recorded facts of the runs behind it. It needs no network: style, script and pictures are in the file.
"""

import base64
import html
import json
from importlib import resources
from pathlib import Path

from dassl.report.stamps import STAMPS, stamp
from dassl.utils import atomic_write

_HIDDEN = ("file", "written")


def write_page(path, sheets, figures, records):
    """Sheets, figure files (PNG) and the records behind them -> the page at `path`."""
    runs = _Runs(records)
    parts = [
        _filters(sheets, runs),
        *(_sheet(sheet, runs) for sheet in sheets),
        *_figures(figures),
        f"<h2>Runs</h2>\n<div id=facts>{runs.sections()}</div>",
    ]
    template = resources.files("dassl.report").joinpath("page.html").read_text(encoding="utf-8")
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(template.replace("<!-- content -->", "\n".join(parts)))
    return Path(path)


class _Runs:
    """The records by their file, numbered; only those that a cell links to are printed."""

    def __init__(self, records):
        self.records = {str(r["file"]): r for r in records}
        self.numbers = {}

    def anchors(self, files):
        """Files of a cell -> numbers of their sections."""
        known = [file for file in dict.fromkeys(files) if file in self.records]
        return [self.numbers.setdefault(file, len(self.numbers)) for file in known]

    def of(self, files):
        return [self.records[file] for file in files if file in self.records]

    def sections(self):
        """One folded section a run, with every field of its results.json."""
        return "\n".join(self._section(file, number) for file, number in self.numbers.items())

    def _section(self, file, number):
        record = self.records[file]
        words = [record["trainer"], record["preset"], record["dataset"], record["subset"], f"seed {record['seed']}"]
        title = ", ".join(filter(None, map(str, words)))
        rows = "".join(
            f"<tr><th>{_text(name)}</th><td>{_text(_value(value))}</td></tr>"
            for name, value in sorted(record.items())
            if name not in _HIDDEN
        )
        return (
            f"<details id=run{number}><summary>{_text(title)}</summary>"
            f"<p>{_text(file)}</p><table>{rows}</table></details>"
        )


def _sheet(sheet, runs):
    tables = "\n".join(_table(table, runs) for table in sheet.tables)
    legend = "".join(f"<li>{_text(line)}</li>" for line in sheet.legend)
    return f"<section><h2>{_text(sheet.heading)}</h2>\n{tables}\n<ul class=legend>{legend}</ul></section>"


def _table(table, runs):
    """The table with what the filters look at: method and stamps on rows, the data set on the table."""
    head = "".join(f"<th>{_text(name)}</th>" for name in table.columns)
    body = "\n".join(_row(table, number, line, runs) for number, line in enumerate(table.rows))
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    return (
        f'<div class=table data-dataset="{_text(table.title)}"><h3>{_text(table.title)}</h3>'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
        f"<ul class=notes>{notes}</ul></div>"
    )


def _row(table, number, line, runs):
    files = [file for (row, _), behind in table.files.items() if row == number for file in behind]
    stamps = sorted(_stamps(runs.of(files)))
    cells = [f"<th>{_text(line[0])}</th>"]
    for place, text in enumerate(line[1:], start=1):
        numbers = runs.anchors(table.files.get((number, place), []))
        shown = _text(text)
        if numbers:
            shown = f'<a href="#run{numbers[0]}" data-runs="{" ".join(map(str, numbers))}">{shown}</a>'
        cells.append(f"<td>{shown}</td>")
    attributes = f'data-method="{_text(line[0])}" data-stamps="{_text("|".join(stamps))}"'
    return f"<tr {attributes}>{''.join(cells)}</tr>"


def _stamps(records):
    """What the stamps of a row's runs say, in words."""
    return {f"{head}: {words}" for r in records for name, head in STAMPS.items() if (words := stamp(r, name))}


def _filters(sheets, runs):
    """One list of choices each for method, data set (the tables' titles) and stamp."""
    tables = [table for sheet in sheets for table in sheet.tables]
    files = [file for table in tables for behind in table.files.values() for file in behind]
    choices = {
        "method": list(dict.fromkeys(line[0] for table in tables for line in table.rows)),
        "dataset": list(dict.fromkeys(table.title for table in tables)),
        "stamp": sorted(_stamps(runs.of(files))),
    }
    names = {"method": "Method", "dataset": "Table", "stamp": "Stamp"}
    return (
        "<form id=filters>" + "".join(_choice(key, names[key], values) for key, values in choices.items()) + "</form>"
    )


def _choice(key, name, values):
    options = "".join(f'<option value="{_text(value)}">{_text(value)}</option>' for value in values)
    return f"<label>{name} <select id={key}><option value=''>all</option>{options}</select></label>"


def _figures(files):
    pictures = [file for file in map(Path, files) if file.suffix == ".png"]
    if pictures:
        yield "<h2>Figures</h2>"
    for file in pictures:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        name = _text(file.stem.replace("_", " "))
        yield f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


def _value(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value):
    return html.escape(str(value), quote=True)
