"""What the rows of a table are called.

A method is (trainer, preset), or a merge of such a run with zero-shot CLIP. Its printed name comes from a small
table that the caller passes in, so that this package knows no method. Runs of one method that differ in
backbone or shots become rows of their own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

from dassl.report.records import is_number, without_repeats

CONTROL = "continued"  # the preset of stage 2 without the method: a control, which papers do not have
USUAL = "coop"  # the family of templates of a zero-shot row that names none
EACH_TEMPLATE = "each data set's own template"
CHANGED = "changed: "  # behind a preset's name, if there is one, before the keys that a command line changed
# what a merge says of itself beside its values; `of` or `preset` is that of the run that was merged
_ABOUT = {"method", "title", "preset", "of", "base", "parents", "merge_space"}


@dataclass(frozen=True)
class Methods:
    """Printed names, in printed order."""

    labels: Mapping = field(default_factory=dict)  # (trainer, preset) -> name; None: any preset not listed beside it
    short: Mapping = field(default_factory=dict)  # trainer -> its name where a preset stands behind it or a merge
    aliases: Mapping = field(default_factory=dict)  # old trainer name -> current one
    merges: Mapping = field(default_factory=dict)  # name of a merging method -> printed name
    stage1: Mapping = field(default_factory=dict)  # stage-2 trainer -> the trainer that it continues
    settings: Mapping = field(default_factory=dict)  # key that a sweep varies -> printed name
    zero_shot: str = "ZeroshotCLIP"  # trainer whose row is the reference that "below zero-shot" compares with
    datasets: tuple = ()  # names; others follow by alphabet
    published: tuple = ()  # JSON files of accuracies that papers print: see protocols/against.py

    def trainer(self, record: dict) -> str:
        """A record's trainer, by its current name."""
        return self.aliases.get(record["trainer"], record["trainer"])

    def label(self, trainer: str, preset: str = "") -> str:
        """The method's printed name; a pair that the table lacks, or a changed preset, becomes "Trainer (preset)"."""
        trainer = self.aliases.get(trainer, trainer)
        if (trainer, preset) in self.labels:
            return self.labels[trainer, preset]
        name, any_preset = self.short.get(trainer, trainer), self.labels.get((trainer, None))
        if any_preset and CHANGED not in preset:
            return any_preset
        return f"{any_preset or name} ({preset})" if preset else name

    def rank(self, row: "Row") -> tuple:
        """Sort key of a Row: the table's order, a changed preset behind its own, merges behind all of these."""
        places = {pair: k for k, pair in enumerate(self.labels)}
        last = max((k for (trainer, _), k in places.items() if trainer == row.trainer), default=len(places))
        any_preset = places.get((row.trainer, None), last)
        place = places.get((row.trainer, split_changes(row.preset)[0]), any_preset)
        rest = row.preset, row.backbone, row.shots or 0, row.unfinished, str(row.setting)
        return place, bool(row.merge), row.label, *rest

    def dataset_rank(self, name: str) -> tuple[int, str]:
        """Sort key of a data set's name."""
        known = name in self.datasets
        return self.datasets.index(name) if known else len(self.datasets), name


NONE = Methods()  # every method by the names in its record


def split_changes(preset: str) -> tuple[str, list[str]]:
    """A record's preset -> (the preset itself or "", what was changed)."""
    plain, mark, changes = preset.partition(CHANGED)
    return plain.removesuffix(", "), changes.split(", ") if mark else []


def is_control(preset: str) -> bool:
    """Training on without the method, whatever else was changed."""
    return split_changes(preset)[0] == CONTROL


def split_by_template(records: list[dict], methods: Methods) -> list[dict]:
    """Zero-shot runs on other templates than the usual ones as rows of their own, by the template as their preset.

    `template_family` of such a run: what it was asked for, then all other names of the same prompt. Where a data
    set has one prompt under two names, its run serves both rows.
    """
    runs = [r for r in records if methods.trainer(r) == methods.zero_shot and r.get("template_family")]
    others = [r for r in runs if USUAL not in r["template_family"]]
    fields = "dataset", "protocol", "subset", "seed"
    split = [r for r in records if not any(r is other for other in others)]
    for family in dict.fromkeys(r["template_family"][0] for r in others):
        asked = [r for r in runs if r["template_family"][0] == family]
        lent = [r for r in runs if family in r["template_family"]]
        asked = without_repeats(asked, lent, lambda r: (*map(r.get, fields), backbone_of(r)))
        words = {str(r.get("templates")) for r in asked}
        split += [{**r, "preset": words.copy().pop() if len(words) == 1 else EACH_TEMPLATE} for r in asked]
    return split


class Row(NamedTuple):
    """One row of a table: what must agree for runs to be averaged over seeds."""

    label: str
    trainer: str
    preset: str
    backbone: str
    shots: int | None  # None where the method sees no data or the run does not say
    merge: str = ""  # such as "TIES (density 0.2)"
    setting: tuple = ()  # the values of a sweep, (key, value) each
    unfinished: str = ""  # how far its training is, such as "epochs 30 of 300, unfinished"
    chosen: str = ""  # the weights that a line named, where training chooses others: "last epoch", "epoch 3"


def row_of(record: dict, methods: Methods) -> Row:
    """The row that a record belongs to."""
    trainer, merge, chosen = methods.trainer(record), merge_name(record, methods), named_weights(record)
    preset = str(record["merge"].get("of") or record["merge"].get("preset") or "") if merge else record["preset"]
    label = methods.label(trainer, preset)
    if chosen:
        label = f"{label[:-1]}, {chosen})" if label.endswith(")") else f"{label}, {chosen}"
    shots, left = None if sees_no_data(record) else record.get("shots"), record.get("unfinished") or ""
    label += f" + {merge}" if merge else ""
    return Row(label, trainer, preset, backbone_of(record), shots, merge, unfinished=left, chosen=chosen)


def plain_row(record: dict, methods: Methods) -> Row:
    """The row of a record's method with its preset's changes taken off, and the epoch that a line named by number."""
    named = record.get("instead_of") if record.get("chosen_on") == "last_step" else ""
    return row_of({**record, "preset": split_changes(record["preset"])[0], "instead_of": named}, methods)


def named_weights(record: dict) -> str:
    """The weights that were scored in place of those that training chooses: "last epoch", "epoch 3", or ""."""
    chosen = record.get("chosen_on") or ""
    return ("last epoch" if chosen == "last_step" else chosen) if record.get("instead_of") else ""


def merge_name(record: dict, methods: Methods) -> str:
    """What a merged model was made by, with its values, such as "TIES (density 0.2, scale 1)", or "".

    Numbers that were chosen on validation are a result of the run, not part of the method, and are left out.
    """
    merge = record.get("merge") or {}
    if not merge.get("method"):
        return ""
    title, values = str(merge.get("title") or merge["method"]), merge_values(record)
    name, chosen = methods.merges.get(merge["method"], title.replace("_", " ")), record.get("alpha_chosen_on")
    numbers = {k: v for k, v in values.items() if is_number(v) and k != "seed"}
    if chosen and chosen not in ("given", "none"):
        words = [f"{'alpha' if set(numbers) == {'alpha'} else 'values'} by {chosen}"]
    elif record["preset"].startswith(f"{title} ("):  # the maker's own words, with the other parents
        return name + record["preset"].removeprefix(title)
    else:
        words = [f"{key} {value:g}" for key, value in numbers.items()]
    words += [f"{key} {value}" for key, value in values.items() if isinstance(value, str)]
    return f"{name} ({', '.join(words)})" if words else name


def merge_values(record: dict) -> dict:
    """The values that a merge was made with, empty for a run that is none."""
    merge = record.get("merge") or {}
    values = merge.get("values")
    return values if isinstance(values, dict) else {k: v for k, v in merge.items() if k not in _ABOUT}


def sees_no_data(record: dict) -> bool:
    """True for zero-shot runs: nothing was trained, so shots and source mean nothing."""
    return record.get("data_seen") == "none"


def backbone_of(record: dict) -> str:
    """Name of the record's backbone, or ""."""
    backbone = record.get("backbone") or {}
    return str(backbone.get("name", "") if isinstance(backbone, dict) else backbone)


def sort_rows(rows: Iterable[Row], methods: Methods) -> list[Row]:
    """Distinct rows in printed order."""
    return sorted(set(rows), key=methods.rank)


def row_names(rows: Iterable[Row]) -> dict[Row, str]:
    """Printed names. Rows that share a label get what tells them apart behind it, and each how far
    its training is if that has not ended."""
    words = {r: (r.preset or "no preset", r.backbone or "unknown backbone", _shots(r.shots)) for r in rows}
    names = {}
    for row in rows:
        twins = zip(*(words[other] for other in rows if other.label == row.label), strict=True)
        differs = (len(set(twin)) > 1 for twin in twins)
        names[row] = ", ".join(filter(None, [row.label, *compress(words[row], differs), row.unfinished]))
    return names


def shared_settings(rows: Iterable[Row]) -> str:
    """What all rows agree on beside the method, behind a heading, such as " (tiny, 16 shots)", or ""."""
    backbones = {row.backbone for row in rows}
    shots = {row.shots for row in rows} - {None}
    words = [*backbones - {""}] if len(backbones) == 1 else []
    words += map(_shots, shots) if len(shots) == 1 else []
    return f" ({', '.join(words)})" if any(words) else ""


def _shots(shots):
    if shots is None:
        return "unknown shots"
    return "all images" if shots < 1 else f"{shots} shots"
