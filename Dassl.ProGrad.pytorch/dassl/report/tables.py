"""One table, written four ways: aligned text for a terminal, Markdown, LaTeX, CSV."""

import csv
import io
import re
from dataclasses import dataclass, field

MISSING = "\N{EM DASH}"
BELOW = "\N{DOWNWARDS ARROW}"  # behind a number that is below zero-shot CLIP's
MULTIPLY = "\N{MULTIPLICATION SIGN}"

# What LaTeX reads as a command, or lacks in its default fonts.
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "±": r"$\pm$", MISSING: "---", BELOW: r"$\downarrow$", MULTIPLY: r"$\times$",
    ">": "$>$", "<": "$<$",
}  # fmt: skip
_FORMULA = re.compile(r"[=@\t]|[+-](?![\d. ±to+-]*$)")  # +0.10 to +0.90 is none
_LATEX_SIGNS = re.compile("|".join(map(re.escape, _LATEX)))


class Cell(str):
    """What a table or a CSV shows of a number. files: the results.json behind it."""

    files = ()

    def __new__(cls, text, files=()):
        cell = super().__new__(cls, text)
        cell.files = files
        return cell


@dataclass
class Table:
    """title: str; columns: K names; rows: lists of K strings, Cells where their runs are known; notes: lines below."""

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
        cells = [[markdown_text(cell) for cell in line] for line in head + self.rows]
        lines = [f"{'#' * level} {markdown_text(self.title)}", "", *("| " + " | ".join(line) + " |" for line in cells)]
        if self.notes:
            lines += ["", *(f"- {markdown_text(note)}" for note in self.notes)]
        return "\n".join(lines)

    def latex(self):
        """A table environment with booktabs' rules, the title as caption -> str without a final newline."""
        head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in [self.columns, *self.rows])
        columns = "l" + "r" * (len(self.columns) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}", *(rf"\par\footnotesize {latex_text(note)}" for note in self.notes)]
        return "\n".join([*lines, r"\end{table}"])


def markdown_text(text):
    """Text without signs that end a cell or begin HTML -> str."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def latex_text(text):
    """Text with LaTeX's own signs escaped -> str."""
    return _LATEX_SIGNS.sub(lambda match: _LATEX[match.group()], text)


def show(summary, below=False, digits=2):
    """A Summary in decimals: "71.20 ± 0.52", "71.20" for one seed, a dash for none; an arrow if `below` -> Cell."""
    if not summary:
        return Cell(MISSING, summary.files)
    deviation = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return Cell(f"{summary.mean:.{digits}f}{deviation}{' ' + BELOW if below else ''}", summary.files)


def show_n(summaries):
    """The number of seeds behind a line; where its columns differ, one number for each."""
    counts = [summary.n for summary in summaries]
    if not any(counts):
        return MISSING
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def csv_numbers(summary, digits=2):
    """mean, std, n of a Summary as CSV cells; empty where there is no number."""
    mean, std = ("" if x is None else f"{x:.{digits}f}" for x in summary[:2])
    return [Cell(mean, summary.files), std, str(summary.n)]


def to_csv(columns, rows):
    """Header and rows -> CSV text with unix line ends; a text that a spreadsheet would run has a ' in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([f"'{cell}" if _FORMULA.match(str(cell)) else cell for cell in line] for line in [columns, *rows])
    return buffer.getvalue()
