"""Few-shot draws as files: what a run keeps in subset.json, and a run that is given one (--subset, DATASET.SUBSET).

{"format": 1, "dataset", "shots", "seed", "sampler", "split": digest of the lists, "train": [paths], "val": [paths]};
instead of a list "all", and for val "test" or "none", where nothing was drawn.
"""

from collections.abc import Callable

from dassl.data.datasets import Datum
from dassl.utils import UserError, brief, read_json

FORMAT = 1
KEYS = ("format", "dataset", "shots", "seed", "sampler", "split", "train", "val")


def read_subset(path: str, dataset: str, split: str, shots: int) -> dict:
    """A draw for these lists. UserError if the file is none, or of another data set, split or number of shots."""
    drawn = read_json(path)
    if not isinstance(drawn, dict) or any(key not in drawn for key in KEYS) or drawn["format"] != FORMAT:
        raise UserError(f"{path} is no subset: expected format {FORMAT} with {', '.join(KEYS[1:])}")
    for what, own, asked in (
        ("data set", drawn["dataset"], dataset),
        ("split", drawn["split"], split),
        ("DATASET.NUM_SHOTS", drawn["shots"], shots),
    ):
        if own != asked:
            raise UserError(f"{path} was drawn for {what} {own}, but this run has {asked}")
    for part in ("train", "val"):
        paths = drawn[part]
        if not isinstance(paths, str | list) or not all(isinstance(item, str) for item in paths):
            raise UserError(f"{path}: {part} is {brief(paths)}, expected a list of paths")
    return drawn


def picked(items: list[Datum], wanted: str | list[str], relative: Callable[[Datum], str], where: str) -> list[Datum]:
    """The items of these relative paths, in the order of the paths; all items where nothing was drawn."""
    if isinstance(wanted, str):
        return items
    by_path = {relative(item): item for item in items}
    unknown = [path for path in wanted if path not in by_path]
    if unknown:
        raise UserError(f"{where}: {len(unknown)} of {len(wanted)} paths are not in the split's list: {unknown[0]}")
    return [by_path[path] for path in wanted]
