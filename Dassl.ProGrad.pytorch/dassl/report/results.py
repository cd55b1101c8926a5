"""Runs as records: every results.json below some folders, checked, selected and grouped.

Each run writes results.json last, so its presence means that the run is finished. Nothing else is read
here: no log, no folder name. A record is the file's own dict, with `preset` never None and three fields
added: `file` (Path), `written` (modification time in seconds) and `kind` ("train" or "eval").
"""

import json
import math
import os
from pathlib import Path

from dassl.utils import MissingFile, brief, get_logger, read_text

FORMAT = 1
RESULTS_FILE = "results.json"
_FIELDS = {"trainer": str, "dataset": str, "protocol": str, "subset": str, "seed": int, "metrics": dict}
_OPTIONAL = {"preset": str, "kind": str, "shots": int, "command": str | list, "merge": dict, "alpha_chosen_on": str,
             "data_seen": str, "template_family": list}  # fmt: skip


def load_results(*folders):
    """All readable results below `folders`, sorted by path -> list of records (dicts, see the module's head).

    A file that is damaged, not ours or of another format costs one warning that names it, and is left
    out. Folders may overlap. MissingFile if one of them does not exist.
    """
    records = []
    for file in find_files(RESULTS_FILE, *folders):
        try:
            records.append(read_result(file))
        except (OSError, ValueError, RecursionError) as error:
            get_logger().warning(f"Warning: {file} is left out: {error}")
    return records


def find_files(name, *folders):
    """Files called `name` anywhere below `folders`, each once, sorted -> list of Paths."""
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise MissingFile(f"No folder of runs at {folder}")
        for parent, _, names in os.walk(folder):
            if name in names:
                file = Path(parent, name)
                found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def read_result(file):
    """One results.json -> record. ValueError says what is wrong with it."""
    file = Path(file)
    record = read_object(file, FORMAT)
    for field, kind in _FIELDS.items():
        value = record.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"field {field!r}: expected {kind.__name__}, found {brief(value)}")
    for field, kind in _OPTIONAL.items():
        value = record.get(field)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"field {field!r}: expected {getattr(kind, '__name__', kind)}, found {brief(value)}")
    if record.get("merge") and not isinstance(record["merge"].get("method", ""), str):
        raise ValueError(f"field 'merge': expected a method's name, found {brief(record['merge'])}")
    for name, value in record["metrics"].items():
        if not is_number(value):
            raise ValueError(f"metric {name!r}: expected a finite number, found {brief(value)}")
    return {
        **record,
        "preset": record.get("preset") or "",
        "kind": _kind(record),
        "file": file,
        "written": file.stat().st_mtime,
    }


def read_object(file, format):
    """A JSON file that holds an object of this `format` -> dict. ValueError says what it holds instead."""
    try:
        content = json.loads(read_text(file))
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    if content.get("format") != format:
        raise ValueError(f"expected format {format}, found {brief(content.get('format'))}")
    return content


def is_number(value):
    """True for a finite int or float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(record):
    """What the run was. Files without the field say it by their command line."""
    if record.get("kind"):
        return record["kind"]
    command = record.get("command") or ""
    words = command.split() if isinstance(command, str) else command
    return "eval" if "--eval-only" in words else "train"


def select(records, **wanted):
    """Records whose fields have the wanted values; a tuple, list or set admits each of its members."""
    allowed = {name: v if isinstance(v, tuple | list | set) else (v,) for name, v in wanted.items()}
    return [r for r in records if all(r.get(name) in values for name, values in allowed.items())]


def group_by(records, key):
    """Records by `key(record)`, groups in order of first appearance -> dict key -> list."""
    groups = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def newest_each(records, key, what="runs"):
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
