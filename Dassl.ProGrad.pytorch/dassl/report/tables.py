"""One table, written three ways: aligned text for a terminal, Markdown, CSV."""

import csv
import io
from dataclasses import dataclass, field

MISSING = "\N{EM DASH}"


@dataclass
class Table:
    """title: str; columns: K names; rows: lists of K strings; notes: lines below the table."""

    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)

    def text(self):
        """Aligned columns below the title -> str without a final newline."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.columns))]
        aligned = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, rule, aligned[0], rule, *aligned[1:], *self.notes])

    def markdown(self, level=3):
        """A heading of the given level, the table, the notes as a list -> str without a final newline."""
        head = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1)]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in head + self.rows]
        lines = [f"{'#' * level} {self.title}", "", *("| " + " | ".join(line) + " |" for line in cells)]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def show(summary):
    """A Summary in two decimals: "71.20 ± 0.52", "71.20" for one seed, a dash for None."""
    if summary is None:
        return MISSING
    return f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}")


def csv_numbers(summary):
    """mean, std, n of a Summary as CSV cells; empty where there is no number."""
    if summary is None:
        return ["", "", "0"]
    return [f"{summary.mean:.2f}", "" if summary.std is None else f"{summary.std:.2f}", str(summary.n)]


def to_csv(columns, rows):
    """Header and rows -> CSV text with unix line ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
