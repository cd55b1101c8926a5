"""What one protocol has to say: a heading, its tables, a legend and the numbers, written in every format."""

from dataclasses import dataclass
from pathlib import Path

from dassl.report.grid import is_below
from dassl.report.methods import CSV_HEAD, csv_head, zero_shot_row
from dassl.report.tables import MISSING, Table, csv_numbers, latex_text, show, show_n, to_csv
from dassl.utils import atomic_write

SEEDS_LEGEND = "mean ± population deviation over n seeds; where the columns of a line differ, n is given for each"
EVALUATIONS_LEGEND = f"{MISSING}: no evaluation run found; a training run's own final test is not counted"


@dataclass
class Sheet:
    """name: the files' stem; tables: the one to read first stands first; legend: lines below all tables;
    columns, lines: of the CSV."""

    name: str
    heading: str
    tables: list
    legend: list
    columns: list
    lines: list

    def text(self):
        """For the terminal: the table to read first stands last -> str."""
        tables = [*self.tables[1:], self.tables[0]]
        return "\n\n".join([self.heading, *(table.text() for table in tables), "\n".join(self.legend)])

    def markdown(self):
        """-> str."""
        legend = "\n".join(f"- {line}" for line in self.legend)
        return "\n\n".join([f"## {self.heading}", *(table.markdown() for table in self.tables), legend]) + "\n"

    def latex(self):
        """Table environments; they need the package booktabs -> str."""
        legend = "\n".join(rf"\par\footnotesize {latex_text(line)}" for line in self.legend)
        head = f"% {self.heading}. Needs \\usepackage{{booktabs}}."
        return "\n\n".join([head, *(table.latex() for table in self.tables), legend]) + "\n"

    def csv(self):
        """-> str."""
        return to_csv(self.columns, self.lines)

    def write(self, folder, latex=False):
        """NAME.md, NAME.csv and, if asked, NAME.tex into `folder` -> their Paths."""
        texts = {"md": self.markdown(), "csv": self.csv()} | ({"tex": self.latex()} if latex else {})
        paths = []
        for ending, text in texts.items():
            paths.append(Path(folder, f"{self.name}.{ending}"))
            with atomic_write(paths[-1], "w", encoding="utf-8", newline="") as file:
                file.write(text)
        return paths


def method_table(title, names, columns, cells, methods, unjudged=(), uncounted=(), extra=lambda row: [], notes=()):
    """-> Table with a line for each method: its name, what `extra` says of it, its cells, the number of seeds.

    names: {row: printed}; cells: row -> {quantity: Summary}, marked where below zero-shot CLIP's but for the
    quantities `unjudged`; n is not of those `uncounted`.
    """
    rows, by_row = [], {row: cells(row) for row in names}
    for row, summaries in by_row.items():
        theirs = by_row.get(zero_shot_row(row, names, methods), {})
        shown = [show(s, q not in unjudged and is_below(s, theirs.get(q))) for q, s in summaries.items()]
        rows.append([names[row], *extra(row), *shown, show_n(s for q, s in summaries.items() if q not in uncounted)])
    return Table(title, ["method", *columns, "n"], rows, [*notes])


def method_sheet(name, heading, tables, legend, keys, lines, after=(), evaluations=True):
    """-> Sheet of tables and lines as this module makes them. keys, after: names of a CSV's columns between those that
    name a row and its numbers, and behind; evaluations: all numbers are those of evaluation runs."""
    legend = [SEEDS_LEGEND, *legend, *([EVALUATIONS_LEGEND] if evaluations else [])]
    return Sheet(name, heading, tables, legend, [*CSV_HEAD, *keys, "mean", "std", "n", *after], lines)


def csv_lines(names, cells, after=lambda row: [], digits=2):
    """A line for each row and cell: who it is, the cell's key, mean, std, n, what `after` says of the row.

    names: {row: printed}; cells: row -> {tuple of str: Summary}.
    """
    return [
        [*csv_head(row, names), *key, *csv_numbers(summary, digits), *after(row)]
        for row in names
        for key, summary in cells(row).items()
    ]


def below_zero_shot(row, columns, grid, methods):
    """The columns on which a row is below zero-shot CLIP on the same backbone -> list."""
    reference = zero_shot_row(row, grid.rows, methods)
    return [c for c in columns if reference and is_below(grid.cell(row, c), grid.cell(reference, c))]


def row_notes(name, *texts):
    """What a reader must know of a row; empty texts say nothing -> list of str."""
    return [f"{name}: {text}." for text in texts if text]


def data_sets(names):
    """ "1 data set", "2 data sets"."""
    return f"{len(names)} data set{'s' if len(names) > 1 else ''}"
