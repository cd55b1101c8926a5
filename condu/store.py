"""Experts on disk, one file a task: what fusing the tasks in any other order needs. No part of a stream's
state (ConDU, arXiv 2503.10705, keeps none of them), so it lies apart.

Letters: C classes, D joint width.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from torch import Tensor

from dassl.utils import UserError, load_tensors, save_tensors

FORMAT = 1
SUFFIX = ".safetensors"
NO_FILE_NAME = re.compile(r"[^\w .+&,()-]|^\.")
DELTA = "delta."  # before the names of its tensors


class ExpertStore:
    """A folder with a file <task>.safetensors for each expert: delta, prototypes (C, D) and facts.

    What cannot stand in a file's name is percent-encoded.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, task: str) -> Path:
        """The task's file. Raises UserError for a task without a name."""
        if not task.strip():
            raise UserError("A task has no name (DATASET.CUSTOM.TASK)")
        name = NO_FILE_NAME.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), task)
        return self.folder / (name + SUFFIX)

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
        stored = header.get("facts")
        known = (header.get("format"), header.get("task")) == (FORMAT, task) and isinstance(stored, dict)
        if not known or "prototypes" not in tensors:
            raise UserError(f'"{path}" is no expert of {task} in format {FORMAT}')
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
        """Tasks that have a file here, sorted."""
        return sorted(unquote(path.name.removesuffix(SUFFIX)) for path in self.folder.glob(f"[!.]*{SUFFIX}"))
