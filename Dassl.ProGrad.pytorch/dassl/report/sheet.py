"""What one protocol has to say: a heading, its tables, a legend and the numbers, written in every format."""

from dataclasses import dataclass, field
from pathlib import Path

from dassl.report.tables import MISSING, latex_text, to_csv
from dassl.utils import atomic_write

SEEDS_LEGEND = "mean ± population deviation over n seeds; where the columns of a line differ, n is given for each"
EVALUATIONS_LEGEND = f"{MISSING}: no evaluation run found; a training run's own final test is not counted"


@dataclass
class Sheet:
    """name: the files' stem; tables: the one to read first stands first; lines: rows of the CSV.

    legend: lines below all tables; columns: names of the CSV's; files: for each of `lines` the results.json behind
    it, of a sheet whose numbers can be compared with published ones.
    """

    name: str
    heading: str
    tables: list
    legend: list
    columns: list
    lines: list
    files: list = field(default_factory=list)

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
