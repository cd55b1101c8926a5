"""Rows of the table that `python -m tests.benchmarks` prints, one a ratio.

A module of this package with `gather(quick, folder) -> (rows, faults)` is found by itself: it measures, in the full
setting or in a small one, may write its own JSON below `folder`, and prints what it likes. Faults are sentences.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

COLUMNS = "{:11}{:50}{:>12}{:>12}{:>10}{:>14}"
TITLES = ("", "", "ours", "plain way", "ratio", "expected")


@dataclass(frozen=True)
class Row:
    """What a way of ours and the plain way take, in `unit` ("s", "MB", "": a number).

    least: the ratio, plain over ours, expected in the full setting on 2 quiet cores; None where nothing is.
    """

    name: str
    unit: str
    ours: float
    plain: float
    least: float | None = None

    @property
    def ratio(self) -> float:
        return self.plain / self.ours

    @property
    def met(self) -> bool | None:
        return None if self.least is None else self.ratio >= self.least

    def cells(self) -> tuple[str, ...]:
        expected = "-" if self.least is None else f">= {self.least:.3g} " + ("yes" if self.met else "no")
        return self.name, shown(self.ours, self.unit), shown(self.plain, self.unit), f"{self.ratio:.3g}", expected

    def as_json(self) -> dict:
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


Gather = Callable[[bool, Path], tuple[list[Row], list[str]]]


def benchmarks() -> dict[str, Gather]:
    """{module's name: its `gather`}."""
    package = importlib.import_module(__package__)
    names = [found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")]
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in names}
    return {name: module.gather for name, module in modules.items() if hasattr(module, "gather")}


def lines(found: dict[str, Iterable[Row]]) -> list[str]:
    """The table of {benchmark: rows}."""
    rows = [(name, *row.cells()) for name, own in found.items() for row in own]
    return [COLUMNS.format(*cells) for cells in (TITLES, *rows)]


def shown(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    return f"{value:,.0f} {unit}".rstrip()
