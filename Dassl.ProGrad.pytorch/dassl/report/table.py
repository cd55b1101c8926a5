"""One table, written four ways: aligned text for a terminal, Markdown, LaTeX, CSV."""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any

from dassl.report.frame import Grid, Summary, is_below
from dassl.report.methods import Row
from dassl.utils import atomic_write, one_line
from dassl.utils.moved import old_names

MISSING = "\N{EM DASH}"
BELOW = "\N{DOWNWARDS ARROW}"  # behind a number that is below zero-shot CLIP's
MULTIPLY = "\N{MULTIPLICATION SIGN}"
WIDTH = 120  # letters, of a terminal

# What LaTeX reads as a command, or lacks in its default fonts.
_LATEX = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    MISSING: "---", BELOW: r"$\downarrow$", MULTIPLY: r"$\times$", ">": "$>$", "<": "$<$",
}  # fmt: skip
_FORMULA = re.compile(r"\s*([=@\uff1d\uff20\uff0b\uff0d]|[+-](?![\d. ±to+-]*$))")  # +0.10 to +0.90 is none


class Cell(str):
    """What a table or a CSV shows of a number. files: the results.json behind it."""

    files = ()

    def __new__(cls, text, files=()):
        cell = super().__new__(cls, text)
        cell.files = files
        return cell


@dataclass
class Table:
    """title: str; columns: K names; rows: lists of K strings, Cells where their runs are known; notes: lines below;
    wide: columns that neither a terminal nor a printed page has room for; spare: those that a terminal lacks too."""

    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)
    wide: tuple = ()
    spare: tuple = ()

    def text(self) -> str:
        """Aligned columns below the title, without a final newline; beside columns that a terminal has no room for, a
        name that makes lines longer than WIDTH stands in several."""
        lines = [[*map(one_line, line)] for line in self._without(self.wide + self.spare)]
        if self.wide + self.spare:
            _, *columns = zip(*lines, strict=True)
            room = max(24, WIDTH - sum(2 + max(map(len, column)) for column in columns))
            names = ([textwrap.wrap(name, room, subsequent_indent="  ") or [""], *rest] for name, *rest in lines)
            folded = (zip_longest(name, *([cell] for cell in rest), fillvalue="") for name, *rest in names)
            lines = [[*line] for part in folded for line in part]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        notes = map(one_line, self.notes)
        return "\n".join([one_line(self.title), rule, aligned[0], rule, *aligned[1:], *notes])

    def markdown(self) -> str:
        """A heading, the table, the notes as a list, without a final newline."""
        head = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1)]
        cells = [[markdown_text(cell) for cell in line] for line in head + self.rows]
        lines = [f"### {markdown_text(self.title)}", "", *("| " + " | ".join(line) + " |" for line in cells)]
        if self.notes:
            lines += ["", *(f"- {markdown_text(note)}" for note in self.notes)]
        return "\n".join(lines)

    def latex(self) -> str:
        """A table environment with booktabs' rules, the title as caption, without a final newline."""
        narrow = self._without(self.wide)
        columns = "l" + "r" * (len(narrow[0]) - 1)
        cells = (" & ".join(map(latex_text, line)) + r" \\" for line in narrow)
        head, *body = ("{}" * line.startswith(("[", "*")) + line for line in cells)  # no argument of the rule above
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}", *(rf"\par\footnotesize {latex_text(note)}" for note in self.notes)]
        return "\n".join([*lines, r"\end{table}"])

    def _without(self, columns):
        """Header and rows."""
        kept = [name not in columns for name in self.columns]
        return [[*compress(line, kept)] for line in (self.columns, *self.rows)]


def markdown_text(text: str) -> str:
    """Text in one line without signs that end a cell or begin HTML or a link."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def latex_text(text: str) -> str:
    """Text in one line with LaTeX's own signs escaped."""
    return one_line(text).translate(str.maketrans(_LATEX))


def show(summary: Summary, below: bool = False, digits: int = 2) -> Cell:
    """A Summary in decimals: "71.20 ± 0.52", "71.20" for one seed, a dash for none; an arrow if `below`."""
    if not summary:
        return Cell(MISSING, summary.files)
    deviation = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return Cell(f"{summary.mean:.{digits}f}{deviation}{' ' + BELOW if below else ''}", summary.files)


def show_n(summaries: Iterable[Summary]) -> str:
    """The number of seeds behind a line; where its columns differ, one number for each."""
    counts = [summary.n for summary in summaries]
    if not any(counts):
        return MISSING
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def csv_numbers(summary: Summary, digits: int = 2) -> list[str]:
    """mean, std, n of a Summary as CSV cells; empty where there is no number."""
    mean, std = ("" if x is None else f"{x:.{digits}f}" for x in summary[:2])
    return [Cell(mean, summary.files), std, str(summary.n)]


def to_csv(columns: list, rows: list[list]) -> str:
    """Header and rows -> CSV text with unix line ends; a text that a spreadsheet would run has a ' in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    cells = [[one_line(str(cell)) for cell in line] for line in [columns, *rows]]
    writer.writerows([f"'{cell}" if _FORMULA.match(cell) else cell for cell in line] for line in cells)
    return buffer.getvalue()


CSV_HEAD = ["method", "trainer", "preset", "backbone", "shots"]
SEEDS_LEGEND = "mean ± population deviation over n seeds; where the columns of a line differ, n is given for each"
EVALUATIONS_LEGEND = f"{MISSING}: no evaluation run found; a training run's own final test is not counted"


@dataclass
class Report:
    """name: the files' stem; tables: the one to read first stands first; legend: lines below all tables;
    columns, lines: of the CSV."""

    name: str
    heading: str
    tables: list
    legend: list
    columns: list
    lines: list

    def text(self) -> str:
        """For the terminal: the table to read first stands last."""
        tables = [*self.tables[1:], self.tables[0]]
        legend = "\n".join(map(one_line, self.legend))
        return "\n\n".join([one_line(self.heading), *(table.text() for table in tables), legend])

    def markdown(self) -> str:
        """A heading, the tables, the legend as a list."""
        legend = "\n".join(f"- {markdown_text(line)}" for line in self.legend)
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"## {markdown_text(self.heading)}", *tables, legend]) + "\n"

    def latex(self) -> str:
        """Table environments; they need the package booktabs."""
        legend = "\n".join(rf"\par\footnotesize {latex_text(line)}" for line in self.legend)
        head = f"% {one_line(self.heading)}. Needs \\usepackage{{booktabs}}."
        return "\n\n".join([head, *(table.latex() for table in self.tables), legend]) + "\n"

    def csv(self) -> str:
        """All numbers, a line each, as `to_csv`."""
        return to_csv(self.columns, self.lines)

    def write(self, folder: str | Path, latex: bool = False) -> list[Path]:
        """NAME.md, NAME.csv and, if asked, NAME.tex into `folder` -> their Paths."""
        texts = {"md": self.markdown(), "csv": self.csv()} | ({"tex": self.latex()} if latex else {})
        paths = []
        for ending, text in texts.items():
            paths.append(Path(folder, f"{self.name}.{ending}"))
            with atomic_write(paths[-1], "w", encoding="utf-8", newline="") as file:
                file.write(text)
        return paths


def method_table(
    title: str,
    grid: Grid,
    names: Mapping[Row, str],
    columns: Iterable[str],
    cells: Callable[[Row], Any],
    unjudged: Collection = (),
    uncounted: Collection = (),
    extra: Callable[[Row], Iterable] = lambda row: [],
    notes: Iterable[str] = (),
) -> Table:
    """A table with a line for each method: its name, what `extra` says of it, its cells, the number of seeds.

    names: {row: printed}; cells: row -> {quantity: Summary or words}, marked where below zero-shot CLIP's but for the
    quantities `unjudged`; n is not of those `uncounted`.
    """
    rows, by_row = [], {row: cells(row) for row in names}
    for row, summaries in by_row.items():
        reference = by_row[clip] if (clip := grid.zero_shot(row)) in by_row else {}
        counted = {q: s for q, s in summaries.items() if not isinstance(s, str)}
        below = {q for q, s in counted.items() if q not in unjudged and is_below(s, reference.get(q))}
        shown = [show(s, q in below) if q in counted else s for q, s in summaries.items()]
        rows.append([names[row], *extra(row), *shown, show_n(s for q, s in counted.items() if q not in uncounted)])
    return Table(title, ["method", *columns, "n"], rows, [*notes])


def method_report(
    name: str,
    heading: str,
    tables: list[Table],
    legend: Iterable[str],
    keys: Iterable[str],
    lines: list[list],
    after: Iterable[str] = (),
    evaluations: bool = True,
) -> Report:
    """A report of tables and lines as this module makes them. keys, after: names of a CSV's columns between those that
    name a row and its numbers, and behind; evaluations: all numbers are those of evaluation runs."""
    legend = [SEEDS_LEGEND, *legend, *([EVALUATIONS_LEGEND] if evaluations else [])]
    return Report(name, heading, tables, legend, [*CSV_HEAD, *keys, "mean", "std", "n", *after], lines)


def csv_lines(name: str, row: Row, cells: dict, after: Iterable[str] = (), digits: int = 2) -> list[list]:
    """A row's lines, one for each cell: who it is, the cell's key, mean, std, n, what stands after.

    name: as printed; cells: {tuple of str: Summary}.
    """
    made = " + ".join(filter(None, [row.preset, row.merge]))
    head = [name, row.trainer, made, row.backbone, "" if row.shots is None else row.shots]
    return [[*head, *key, *csv_numbers(summary, digits), *after] for key, summary in cells.items()]


def column_notes(
    grid: Grid, columns: list, averaged: Iterable, lacks: str, uneven: str, words: Callable[[Any], str] = str
) -> list[str]:
    """Of each row: which of the columns `averaged` it lacks, whether `columns` have not all the same seeds, where it is
    below zero-shot CLIP. lacks, uneven: what is said of it; words: function of a column."""
    notes = []
    for row, name in grid.names.items():
        missing = [column for column in averaged if not grid.by_seed(row, column)]
        gaps = ", ".join(words(c) + "; trained, not evaluated" * ((row, c) in grid.trained) for c in missing)
        below = ", ".join(map(words, grid.below(row, columns)))
        texts = gaps and f"{lacks}: {gaps}", grid.uneven(row, columns) and uneven
        notes += row_notes(name, *texts, below and f"below zero-shot on: {below}")
    return notes


def row_notes(name: str, *texts: str | bool) -> list[str]:
    """What a reader must know of a row; empty texts say nothing."""
    return [f"{name}: {text}." for text in texts if text]


def data_sets(names: Sized) -> str:
    """ "1 data set", "2 data sets"."""
    return f"{len(names)} data set{'s' if len(names) > 1 else ''}"


__getattr__ = old_names(__name__)
