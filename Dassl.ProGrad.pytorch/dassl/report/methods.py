"""What the rows of a table are called.

A method is (trainer, preset). Its printed name comes from a small table that the caller passes in, so
that this package knows no method. Runs of one method that differ in backbone or shots become rows of
their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple


@dataclass(frozen=True)
class Methods:
    """Printed names, in printed order.

    labels: (trainer, preset) -> name; preset None stands for any preset not listed beside it.
    aliases: old trainer name -> current one.
    """

    labels: Mapping = field(default_factory=dict)
    aliases: Mapping = field(default_factory=dict)

    def label(self, trainer, preset=""):
        """The method's printed name; a pair that the table lacks becomes "Trainer (preset)"."""
        trainer = self.aliases.get(trainer, trainer)
        for pair in ((trainer, preset), (trainer, None)):
            if pair in self.labels:
                return self.labels[pair]
        return f"{trainer} ({preset})" if preset else trainer

    def rank(self, label):
        """Sort key of a printed name: the table's order, then the alphabet."""
        order = list(dict.fromkeys(self.labels.values()))
        return (order.index(label) if label in order else len(order), label)


class Row(NamedTuple):
    """One row of a table: what must agree for runs to be averaged over seeds.

    shots is None where the method sees no data or the run does not say.
    """

    label: str
    trainer: str
    preset: str
    backbone: str
    shots: int | None


def row_of(record, methods):
    """The row that a record belongs to."""
    trainer = methods.aliases.get(record["trainer"], record["trainer"])
    backbone = record.get("backbone") or {}
    name = backbone.get("name", "") if isinstance(backbone, dict) else str(backbone)
    label = methods.label(trainer, record["preset"])
    shots = None if record.get("data_seen") == "none" else record.get("shots")
    return Row(label, trainer, record["preset"], name, shots)


def sort_rows(rows, methods):
    """Distinct rows in printed order -> list."""
    return sorted(set(rows), key=lambda r: (methods.rank(r.label), r.preset, r.backbone, r.shots or 0))


def row_names(rows):
    """Printed names -> dict row -> str. Rows that share a label get what tells them apart behind it."""
    names = {}
    for row in rows:
        twins = [other for other in rows if other.label == row.label]
        differs = [len(set(words)) > 1 for words in zip(*map(_describe, twins), strict=True)]
        names[row] = ", ".join([row.label, *compress(_describe(row), differs)])
    return names


def shared_settings(rows):
    """What all rows agree on beside the method, as words -> str such as "tiny, 16 shots"."""
    backbones = {row.backbone for row in rows}
    shots = {row.shots for row in rows} - {None}
    words = [*backbones] if len(backbones) == 1 else []
    words += map(_shots, shots) if len(shots) == 1 else []
    return ", ".join(filter(None, words))


def _describe(row):
    """(preset, backbone, shots) in words."""
    return row.preset or "no preset", row.backbone or "unknown backbone", _shots(row.shots)


def _shots(shots):
    if shots is None:
        return "unknown shots"
    return "all images" if shots < 1 else f"{shots} shots"
