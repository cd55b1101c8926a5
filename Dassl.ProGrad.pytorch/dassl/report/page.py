"""One self-contained HTML page of tables and figures: filters by method, data set and stamp, and a link from every
cell to the recorded facts of the runs behind it. It needs no network: style, script and images are in the file.

Facts repeat from run to run, so the page holds each (field, value) once and a list of numbers for each run; the
script writes them out when a run is opened. 500 runs take about 0.5 MB.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dassl.report.disclosures import STAMPS, stamp
from dassl.report.table import Report
from dassl.utils import atomic_write, one_line, printable

_HIDDEN = ("file", "written", "history")  # of a training run, hundreds of numbers
# What stands behind a method's name in some rows
_BEHIND = re.compile(r"(: (Transfer|Average|Last)|, task known)$")
_METHOD, _DATASET = "method", "data set"  # columns that rows are filtered by


def write_page(
    path: str | Path, reports: Sequence[Report], figures: Iterable[str | Path], records: Sequence[dict]
) -> Path:
    """Reports, figure files (PNG) and the records behind them -> the page at `path`."""
    import jinja2

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    engine = jinja2.Environment(autoescape=True, finalize=_printable, **blocks)
    images = []  # (name, file of its numbers or "", its bytes for a page)
    for file in (file for file in map(Path, figures) if file.suffix == ".png"):
        numbers = f"{file.stem}.csv" if file.with_suffix(".csv").is_file() else ""
        images.append((file.stem.replace("_", " "), numbers, base64.b64encode(file.read_bytes()).decode("ascii")))
    text = engine.from_string(template).render(page=_Page(reports, records), reports=reports, images=images)
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def _printable(value):
    """What the template puts in, before it is escaped; its own markup has been."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


class _Page:
    """What the template asks of tables and runs. A run has a number as soon as a cell links to it; the others are not
    on the page. methods: the rows' names; datasets: those of the runs, a stream's tasks among them; stamps: {head: what
    it says, sorted} of all tables."""

    def __init__(self, reports, records):
        self.records = {str(r["file"]): r for r in records}
        self.numbers = {}
        tables = [table for report in reports for table in report.tables]
        rows = [line[0] for table in tables if table.columns[0] == _METHOD for line in table.rows]
        self.methods = list(dict.fromkeys(_BEHIND.sub("", name) for name in rows))
        names = {name for r in records for name in (r.get("tasks") or [r["dataset"]])}
        shown = [name for table in tables for name in (table.title, *table.columns)]
        self.datasets = [name for name in dict.fromkeys([*shown, *sorted(names)]) if name in names]
        stamps = self.stamps_of([cell for table in tables for line in table.rows for cell in line])
        heads = {head: f"{head}: " for head in STAMPS.values()}
        self.stamps = {h: [s.removeprefix(start) for s in stamps if s.startswith(start)] for h, start in heads.items()}

    def method_of_title(self, title):
        """The method that a table is of, such as an accuracy matrix, or ""."""
        return max((m for m in self.methods if title.startswith(f"{m}, ")), key=len, default="")

    def row(self, table, line):
        """(method, data set) that a row is of, "" for none."""
        method = _BEHIND.sub("", line[0]) if table.columns[0] == _METHOD else ""
        return method, line[table.columns.index(_DATASET)] if _DATASET in table.columns else ""

    def files(self, cell):
        """The results.json behind a cell."""
        return [file for file in dict.fromkeys(getattr(cell, "files", ())) if file in self.records]

    def numbers_of(self, cell):
        """The same by their runs' numbers."""
        return [self.numbers.setdefault(file, len(self.numbers)) for file in self.files(cell)]

    def stamps_of(self, cells):
        """What the stamps of the runs behind cells say, in words, sorted."""
        files = dict.fromkeys(file for cell in cells for file in self.files(cell))
        words = {(head, stamp(self.records[file], name)) for file in files for name, head in STAMPS.items()}
        return sorted(f"{head}: {text}" for head, text in words if text)

    def title(self, file):
        """A run in words."""
        r = self.records[file]
        words = [r["trainer"], r["preset"], r["dataset"], r["subset"], f"seed {r['seed']}"]
        return ", ".join(filter(None, map(str, words)))

    def data(self):
        """The runs' facts as JSON that may stand in a script: every pair once, each run by its pairs' numbers."""
        pairs, runs = {}, []
        for file in self.numbers:
            facts = {"file": one_line(file)}
            for name in (name for name in sorted(self.records[file]) if name not in _HIDDEN):
                value = self.records[file][name]
                facts[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            runs.append([pairs.setdefault(pair, len(pairs)) for pair in facts.items()])
        text = json.dumps({"pairs": list(pairs), "runs": runs}, ensure_ascii=False, separators=(",", ":"))
        return text.replace("<", "\\u003c")
