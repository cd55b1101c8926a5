"""Runs as records: every results.json below some folders, checked, selected and grouped.

Each run writes results.json last, so its presence means that the run is finished. Nothing else is read
here: no log, no folder name. A record is the file's own dict, with `preset` never None and three fields
added: `file` (Path), `written` (modification time in seconds) and `kind` ("train" or "eval").
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dassl.utils import MissingFile, UserError, brief, checkpoint_digest, get_logger, one_line, read_text


class NoRuns(UserError):
    """No run has what a table or figure is made of."""


FORMAT = 1
RESULTS_FILE = "results.json"
LARGEST = 1e9  # shots, epochs, seconds
HIGHEST = 1e150  # whose square, for deviations, is finite too
_REQUIRED = {"trainer": str, "dataset": str, "protocol": str, "subset": str, "seed": int, "metrics": dict}
_TEXTS = ("preset", "kind", "alpha_chosen_on", "chosen_on", "data_seen", "source", "order", "labels", "ablation",
          "split_file", "unfinished", "instead_of")  # fmt: skip
_OPTIONAL = dict.fromkeys(_TEXTS, str) | {
    "shots": int, "epochs": int | float, "max_epoch": int | float, "wall_s": int | float, "command": str | list,
    "merge": dict, "lmc": dict, "teacher": dict, "weights": dict, "backbone": dict | str, "vote": dict | str,
    "space": dict | str, "tasks": list, "template_family": list, "others": dict, "warmup": bool,
}  # fmt: skip
_CHOICES = {"kind": ("train", "eval", "import"), "subset": ("base", "new", "all")}
PERCENT = ("accuracy", "error_rate", "macro_f1", "transfer", "average", "last")  # metrics


def load_results(*folders: str | Path, left_out: list | None = None) -> list[dict]:
    """All readable results below `folders`, sorted by path -> list of records (dicts, see the module's head).

    A file that is damaged, contradicts itself, is not ours or of another format costs one warning that names it, is
    left out, and is added to the list `left_out`; a run without one is named. Folders may overlap. MissingFile if one
    of them does not exist.
    """
    begun = (file for file in find_files("config.yaml", *folders) if file.with_name("log.txt").is_file())
    if lacking := [str(file.parent) for file in begun if not file.with_name(RESULTS_FILE).is_file()]:
        more = f"; and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        shown = one_line("; ".join(lacking[:3]))
        get_logger().warning(f"Warning: unfinished, or {RESULTS_FILE} is lost: {shown}{more}")
    return read_all(RESULTS_FILE, folders, read_result, left_out=left_out)


def read_all(name: str, folders: Iterable, read: Callable, what: str = "", left_out: list | None = None) -> list:
    """`read(file)` of every file called `name` below `folders`, without those that are None -> list.

    A file that cannot be read costs one warning, `what` before its name, and is added to the list `left_out`.
    """
    contents = []
    for file in find_files(name, *folders):
        try:
            contents.append(read(file))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            leave_out(f"{what}{file}", error)
            if left_out is not None:
                left_out.append(file)
    return [content for content in contents if content is not None]


def leave_out(what: object, error: object) -> None:
    """The one line on a file, folder or record that does not count."""
    get_logger().warning(one_line(f"Warning: {what} is left out: {error}"))


def find_files(name: str, *folders: str | Path) -> list[Path]:
    """Files called `name` anywhere below `folders`, each once, sorted -> list of Paths."""
    files: dict = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise MissingFile(f"No folder of runs at {folder}")
        for parent, _, names in os.walk(folder, onerror=lambda error: leave_out(error.filename, error.strerror)):
            if name in names:
                file = Path(parent, name)
                files.setdefault(os.path.realpath(file), file)
    return sorted(files.values())


def read_result(file: str | Path) -> dict:
    """One results.json -> record. ValueError says what is wrong with it."""
    file = Path(file)
    record = read_object(file, FORMAT)
    for field, wanted in (_REQUIRED | _OPTIONAL).items():
        value, optional = record.get(field), field in _OPTIONAL
        fine = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        large = optional and isinstance(value, int | float) and abs(value) > LARGEST
        if (value is not None or not optional) and (large or not fine):
            raise ValueError(f"field {field!r}: expected {getattr(wanted, '__name__', wanted)}, found {brief(value)}")
    if record.get("merge") and not isinstance(record["merge"].get("method", ""), str):
        raise ValueError(f"field 'merge': expected a method's name, found {brief(record['merge'])}")
    for field in ("tasks", "template_family"):
        if not all(isinstance(name, str) for name in record.get(field) or ()):
            raise ValueError(f"field {field!r}: expected names, found {brief(record[field])}")
    for field, choices in _CHOICES.items():
        if record.get(field) and record[field] not in choices:
            raise ValueError(f"field {field!r}: expected one of {', '.join(choices)}, found {brief(record[field])}")
    _check_numbers(record)
    files = (record.get("weights") or {}).get("files")  # of a training: those beside its record, if any are left
    for name, digest in files.items() if isinstance(files, dict) else ():
        if (path := file.parent / name).is_file() and checkpoint_digest(path) != digest:
            raise ValueError(f"it is of another run than {name} beside it")
    command = record.get("command") or ""  # says of files without the field `kind` what the run was
    words = command.split() if isinstance(command, str) else command
    kind = record.get("kind") or ("eval" if "--eval-only" in words else "train")
    about = {"preset": record.get("preset") or "", "kind": kind, "file": file, "written": file.stat().st_mtime}
    return {**record, **about}


def _check_numbers(record):
    """Finite numbers, percentages among them, an accuracy that is that of the counts; of each other data set as many
    images right as there are at most. ValueError if not."""
    for name, value in record["metrics"].items():
        if not is_number(value) or name in PERCENT and not 0 <= value <= 100:
            expected = "0 to 100" if name in PERCENT else "a finite number"
            raise ValueError(f"metric {name!r}: expected {expected}, found {brief(value)}")
    correct, total, accuracy = record.get("correct"), record.get("total"), record["metrics"].get("accuracy")
    counted = accuracy is not None and is_number(correct) and is_number(total)
    if counted and not (0 <= correct <= total and abs(100 * correct - accuracy * total) <= 0.01 * total):
        raise ValueError(f"accuracy {accuracy:g} is not that of {correct} of {total}")
    rate = record["metrics"].get("error_rate")
    if None not in (accuracy, rate) and abs(accuracy + rate - 100) > 0.01:
        raise ValueError(f"accuracy {accuracy:g} and error_rate {rate:g} do not come to 100")
    sets = (record.get("others") or {}).get("sets") or {}
    for name, entry in sets.items() if isinstance(sets, dict) else [("sets", sets)]:
        counts = [entry.get(key) if isinstance(entry, dict) else None for key in ("correct", "total")]
        if not (all(type(count) is int for count in counts) and 0 <= counts[0] <= counts[1] <= LARGEST and counts[1]):
            raise ValueError(f"field 'others', {brief(name)}: expected correct of total, found {brief(entry)}")


def _clean(value):
    """JSON with `one_line` of its texts, and null for what is no finite number."""
    if isinstance(value, dict):
        return {_clean(name): _clean(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        value.encode(errors="surrogateescape")  # UnicodeEncodeError for half a character, but not of a folder's name
        return one_line(value)
    return value if is_number(value) or isinstance(value, bool) else None


def read_object(file: str | Path, format: int) -> dict:
    """A JSON file that holds an object of this `format` -> dict. ValueError says what it holds instead."""
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    if content.get("format") != format:
        raise ValueError(f"expected format {format}, found {brief(content.get('format'))}")
    return _clean(content)


def is_number(value: Any) -> bool:
    """True for a finite int or float up to HIGHEST; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= HIGHEST


def numbers(values: Any, name: str, *shape: int, percent: bool = False, missing: bool = False) -> np.ndarray:
    """A list from a file, or one of lists, as an array of this shape (none: of any length). ValueError if it holds
    anything but finite numbers, in percent if so; missing: or null, which becomes NaN."""
    array = np.array(values, dtype=object)
    low, high = (0, 100) if percent else (-HIGHEST, HIGHEST)
    fine = all(is_number(value) and low <= value <= high or missing and value is None for value in array.flat)
    if array.shape != (shape or (array.size,)) or not fine:
        size, kind = " x ".join(map(str, shape)) or "a list of", "numbers or null" if missing else "finite numbers"
        raise ValueError(f"{name}: expected {size} {kind}{' from 0 to 100' * percent}, found {str(values)[:60]}")
    return array.astype(float)


def select(records: Iterable[dict], **wanted: Any) -> list[dict]:
    """Records whose fields have the wanted values; a tuple, list or set admits each of its members."""
    allowed = {name: v if isinstance(v, tuple | list | set) else (v,) for name, v in wanted.items()}
    return [r for r in records if all(r.get(name) in values for name, values in allowed.items())]


def without_repeats(records: list[dict], lent: list[dict], key: Callable) -> list[dict]:
    """Records, and of the lent evaluation runs the newest for each `key(record)` that none of their evaluations has."""
    taken = {key(r) for r in select(records, kind="eval")}
    newest = {key(r): r for r in sorted(select(lent, kind="eval"), key=lambda r: r["written"])}
    return records + [record for place, record in newest.items() if place not in taken]


def require_evaluations(following: list, records: list, table: str, protocol: str | tuple, classes: str) -> None:
    """NoRuns if of the records that follow a protocol on these classes none is an evaluation run."""
    if not select(following, kind="eval"):
        raise NoRuns(
            f"No {table} table: of {len(records)} results, {len(following)} follow the protocol {protocol!r} on "
            f"{classes} classes and none of these is an evaluation run"
        )


def group_by(records: Iterable, key: Callable) -> dict[Any, list]:
    """Records by `key(record)`, groups in order of first appearance -> dict key -> list."""
    groups: dict = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def most_alike(records: list[dict], key: Callable) -> tuple[Any, list[dict], list[str]]:
    """What most records agree in -> (their `key`, these records, the files of the others)."""
    groups = group_by(records, key)
    most = max(groups, key=lambda k: len(groups[k]))
    return most, groups.pop(most), [str(r["file"]) for group in groups.values() for r in group]


def newest_each(records: Iterable[dict], key: Callable, what: str = "runs") -> list[dict]:
    """One record per key: the one written last. All that give way share one warning.

    records: dicts with `file` and `written`; key: function of a record; what: names the records in the
    warning.
    """
    kept, dropped = [], []
    for group in group_by(records, key).values():
        *older, newest = sorted(group, key=lambda r: (r["written"], str(r["file"])))
        kept.append(newest)
        dropped += [(old["file"], newest["file"]) for old in older]
    if dropped:
        shown = "; ".join(f"{old} gives way to {new}" for old, new in dropped[:3])
        more = f"; and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        get_logger().warning(f"Warning: {len(dropped)} duplicated {what}, the newest counts: {shown}{more}")
    return kept
