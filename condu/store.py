"""Experts on disk, one file a task: what fusing the tasks in any other order needs. No part of a stream's
state (ConDU, arXiv 2503.10705, keeps none of them), so it lies apart.

Letters: C classes, D joint width.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dassl.utils import UserError, load_tensors, read_facts, save_tensors

FORMAT = 1
SUFFIX = ".safetensors"
DELTA = "delta."  # before the names of its tensors


class ExpertStore:
    """A folder with a file <task>.safetensors for each expert: delta, prototypes (C, D) and facts."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, task: str) -> Path:
        """The task's file. Raises UserError for a name that is no file name."""
        if not re.fullmatch(r"\w[\w.+-]*", task):
            raise UserError(f"Task name {task!r} cannot name a file: expected letters, digits, _ . + -")
        return self.folder / f"{task}{SUFFIX}"

    def save(self, task: str, delta: Mapping[str, Tensor], prototypes: Tensor, facts: Mapping) -> None:
        """Write an expert, whole or not at all; an earlier one of the task is replaced. Raises WriteFailed."""
        tensors = {DELTA + name: value for name, value in delta.items()} | {"prototypes": prototypes}
        save_tensors(self.path(task), tensors, {"format": FORMAT, "task": task, "facts": dict(facts)})

    def load(self, task: str, facts: Mapping | None = None) -> tuple[dict, Tensor, dict] | None:
        """(delta, prototypes, facts) of an expert, or None if there is none; a stored expert may say more than
        the facts asked for.

        Raises:
            UserError: facts that differ, each named with both values; a damaged or foreign file.
        """
        path = self.path(task)
        if not path.is_file():
            return None
        tensors, header, _ = load_tensors(path)
        if not _is_expert(header, task) or "prototypes" not in tensors:
            raise UserError(f'"{path}" is no expert of {task} in format {FORMAT}')
        stored = header["facts"]
        differ = [
            f"{name} {json.dumps(stored[name]) if name in stored else 'not told'}, expected {json.dumps(value)}"
            for name, value in json.loads(json.dumps(dict(facts or {}))).items()
            if name not in stored or stored[name] != value
        ]
        if differ:
            raise UserError(f'The expert "{path}" was trained otherwise: {"; ".join(differ)}')
        delta = {name.removeprefix(DELTA): value for name, value in tensors.items() if name.startswith(DELTA)}
        return delta, tensors["prototypes"], stored

    def names(self) -> list[str]:
        """Tasks that have an expert here, sorted; files that are none are passed over."""
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if _holds_expert(path))


def _holds_expert(path: Path) -> bool:
    try:
        return _is_expert(read_facts(path), path.stem)
    except UserError:
        return False


def _is_expert(header: Mapping, task: str) -> bool:
    return (header.get("format"), header.get("task")) == (FORMAT, task) and isinstance(header.get("facts"), dict)
