"""What lies in a run's folder: which checkpoint counts, whether the run is finished, and whose a file is.

Layout: `<folder>/<model>/model.pth.tar-<N>` (N epochs done), `<folder>/<model>/model-best.pth.tar`, and at the end
results.json, with the digest of each.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from dassl.utils import MissingFile, UserError, checkpoint_digest, digest, listdir_nohidden, read_json
from dassl.utils.torchtools import check_weights, drop_token_buffers, strip_module

RESULTS, CONFIG, RESUME = "results.json", "config.yaml", "resume.pt"
MERGE = "merge.json"  # in the place of results.json where weights were merged
BEST = "model-best.pth.tar"
LAST = "last"  # in the place of a number of epochs: the last that were kept
NUMBERED = re.compile(r"model\.pth\.tar-(\d+)|model-(\d+)\.pth\.tar")
_PARTS = ("recipe", "inputs", "weights", "others")


def find_model(directory: str, name: str, epoch: int | str | None = None) -> str:
    """Path of the checkpoint of model `name`: `directory` is a run folder, the model's own folder, or the file itself.

    epoch: the one after so many epochs; None: the best one, or where none was kept the last; LAST: the other way round.
    Both spellings of numbered files are known: model.pth.tar-50 and model-50.pth.tar. MissingFile says what is there,
    UserError that one file has no epoch to choose, or that it is not what its run wrote.
    """
    path = find_file(directory, name, epoch)
    wanted = _choose(check_written(path), epoch)
    if epoch in (None, LAST) and os.path.isdir(directory) and wanted not in (None, os.path.basename(path)):
        ways = f"put it back, or name the file to take, such as {path}"
        raise MissingFile(f'"{os.path.dirname(path)}" has lost {wanted}, which its run wrote: {ways}')
    return path


def find_file(directory: str, name: str, epoch: int | str | None = None) -> str:
    """As `find_model`, whoever wrote the file."""
    if os.path.isfile(directory):
        if epoch is not None:
            raise UserError(f'"{directory}" is one file of weights: there is no epoch {epoch} to choose (--load-epoch)')
        return directory
    for folder in (os.path.join(directory, name), directory):
        there = listdir_nohidden(folder, sort=True) if os.path.isdir(folder) else []
        if chosen := _choose(there, epoch):
            return os.path.join(folder, chosen)
        if BEST in there or any(map(NUMBERED.fullmatch, there)):
            break
    named = epoch not in (None, LAST)
    looked = f"model.pth.tar-{epoch} and model-{epoch}.pth.tar" if named else f"{BEST} and model.pth.tar-N"
    files = ", ".join([file for file in there if file.startswith("model")] or there[:8]) or "no model file"
    raise MissingFile(f'Model not found at "{os.path.join(directory, name)}": looked for {looked}, found {files}')


def last_epoch(directory: str, name: str) -> int:
    """Epochs of the last numbered checkpoint of model `name`, in a folder as `find_model` takes it. MissingFile says
    what is there in its place, or what is lost."""
    file = os.path.basename(find_model(directory, name, LAST))
    if not (match := NUMBERED.fullmatch(file)):
        raise MissingFile(f'"{directory}" holds no last epoch of {name}: looked for model.pth.tar-N, found {file}')
    return int(match[1] or match[2])


def _choose(names: Iterable[str], epoch: int | str | None) -> str | None:
    """The file among names that `find_file` takes, None if there is none."""
    numbered = {int(match[1] or match[2]): file for file in names if (match := NUMBERED.fullmatch(file))}
    if BEST in names and (epoch is None or epoch == LAST and not numbered):
        return BEST
    return numbered.get(max(numbered, default=-1) if epoch in (None, LAST) else int(epoch))


def is_checkpoint(file: Path) -> bool:
    """Whether a file is called as a checkpoint of a run is: the best one, or one with a number of epochs."""
    return file.name == BEST or NUMBERED.fullmatch(file.name) is not None


def load_exactly(
    model: nn.Module, name: str, path: str, state: dict, drop_keys: Callable[[dict], dict] = drop_token_buffers
) -> None:
    """Load a state dict into a module, all of it but what `drop_keys` takes away.

    UserError names what is missing, surplus, no plain tensor, infinite, or of another shape.
    """
    wanted = set(drop_keys(OrderedDict(model.state_dict())))
    state = drop_keys(strip_module(state))
    if wanted != set(state):
        lacks = ", ".join(sorted(wanted - set(state))) or "nothing"
        surplus = ", ".join(sorted(set(state) - wanted)) or "nothing"
        raise UserError(f"{path} does not fit {name}: it lacks {lacks}; it has besides {surplus}")
    check_weights(path, {key: value for key, value in state.items() if torch.is_tensor(value)})
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {name}: {error}") from error


def finished(folder: str | Path, name: str = RESULTS, field: str = "metrics") -> dict:
    """What results.json of a run says, or another such file with that field; {} where there is none that can be read,
    so that the run is done again."""
    try:
        results = read_json(Path(folder, name))
    except (UserError, OSError):
        return {}
    known = isinstance(results, dict) and field in results
    return results if known and all(isinstance(results.get(part, {}), dict) for part in (*_PARTS, field)) else {}


def whole(folder: str | Path) -> dict:
    """What merge.json, or results.json, says of a merge or of a run that is finished; {} of any other."""
    return finished(folder, MERGE, "row") or finished(folder)


# Whose files they are

def content_digest(path: str | Path) -> str:
    """What lies at a path, in 32 digits: a file's content, or that of a run's folder or a model's: its best weights and
    its last. "" where there is nothing."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return checkpoint_digest(path) if path.is_file() else ""
    models = {file.parent for file in [*path.iterdir(), *path.glob("*/*")] if is_checkpoint(file)}
    files = {Path(find_file(str(model), "", epoch)) for model in models for epoch in (None, LAST)}
    files = files or set(filter(Path.is_file, path.iterdir()))
    where = (lambda file: file.parent) if models else (lambda file: file)
    return digest(sorted(f"{where(file).relative_to(path)} {checkpoint_digest(file)}" for file in files))


def weights_digest(files: Iterable[str]) -> str:
    """Of the weights of one model, or of several together."""
    digests = [checkpoint_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else digest(digests)


def scored(files: str, folder: str, epoch: int | str | None = None) -> str:
    """Digest of the weights that an evaluation of `folder` would load, of the models that `files` names; "" if gone."""
    try:
        names = [os.path.dirname(file) for file in files.split(", ")]
        return weights_digest([find_file(folder, name, epoch) for name in names])
    except UserError:
        return ""


def written(folder: str | Path) -> dict[str, str]:
    """{path in the run's folder: digest} of its checkpoints."""
    files = filter(is_checkpoint, Path(folder).glob("*/*"))
    return {f"{file.parent.name}/{file.name}": checkpoint_digest(file) for file in sorted(files)}


def check_written(path: str | Path) -> list[str]:
    """UserError for a file of weights in the folder of a finished run, or of a merge, that this has not written.

    Names of all that it has written beside this file.
    """
    path = Path(path).absolute()
    for folder in path.parents[:2]:
        digests = whole(folder).get("weights", {}).get("files", {})
        name = path.relative_to(folder).as_posix()
        if digests and (name in digests or is_checkpoint(path)):
            if digests.get(name) != checkpoint_digest(path):
                file = folder / (MERGE if (folder / MERGE).is_file() else RESULTS)
                ways = "put its own file back, or make it again (--overwrite)"
                raise UserError(f"{path} is not of the run of {file}: {ways}")
            return [os.path.basename(other) for other in digests if os.path.dirname(other) == path.parent.name]
    return []
