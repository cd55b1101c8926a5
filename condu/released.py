"""Session folders of the released ConDU code as a stream.

After session t that code (arXiv 2503.10705) leaves a folder session_<t>, mostly written from a CUDA device:

    unified.pth      {parameter: unified delta, fp32}
    <Task>.pth       {"masks": {parameter: bool}, "rescalers": 0-d}, a file for each of the t + 1 tasks
    prototypes.pth   {task: [vector (D,) a class]}

It does not say in what order the tasks were learned, nor what their classes are called. A pretrained.pth beside
these is a pickled program and is never opened. The rescalers follow the rule "tensor_mean".
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from condu.delta import size
from condu.fusion import Fusion
from condu.state import Stream, Task, sessions
from condu.tuning import UNTRAINED
from dassl.clip import ClipBackbone
from dassl.utils import MissingFile, UserError, get_logger, is_plain_tensor, load_checkpoint, strip_module

log = get_logger()

UNIFIED, PROTOTYPES = "unified.pth", "prototypes.pth"
NO_TASKS = {UNIFIED, PROTOTYPES, "pretrained.pth"}
SCALE = "tensor_mean"
PROMPTS = ["a photo of a {}."]


def stream_of(folder: str | Path, order: Sequence[str], classes: Mapping, clip: ClipBackbone) -> Stream:
    """The state that a session folder holds.

    order: all task names from the first on, also those of later sessions; case and "_" do not matter. classes:
    {task: class names, or {"classnames", "prompts"}}. clip: the pretrained model that it was trained from.
    MissingFile: no session there. UserError: tasks that are missing or left over, class names that do not fit the
    prototypes, another model, a damaged or hostile file (named).
    """
    folder = Path(folder)
    count = count_tasks(folder)
    prototypes = _by_name(load_checkpoint(folder / PROTOTYPES))
    names = tasks_of(folder, order, count, prototypes)
    rows = [_rows(folder / PROTOTYPES, name, prototypes[_fold(name)]) for name in names]
    tasks = [_task(name, len(task_rows), classes) for name, task_rows in zip(names, rows, strict=True)]
    unified = _tensors(folder / UNIFIED, load_checkpoint(folder / UNIFIED), torch.float32)
    unified, space = trained(folder / UNIFIED, unified, clip)
    fusion = fused(folder, names, unified)
    backbone = {"name": clip.name, "digest": clip.digest}
    try:
        return Stream(fusion=fusion, tasks=tasks, prototypes=rows, backbone=backbone, space=space)
    except UserError as error:
        raise UserError(f'"{folder}": {error}') from error


def count_tasks(folder: Path) -> int:
    """How many tasks a session folder is of: by its name, or else by its prototypes. Raises MissingFile."""
    if not (folder / UNIFIED).is_file():
        inside = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{UNIFIED}")))
        raise MissingFile(f'No {UNIFIED} in "{folder}"' + (f"; there is one in {inside}" if inside else ""))
    named = re.fullmatch(r"session_(\d+)", folder.resolve().name)
    return int(named[1]) + 1 if named else len(load_checkpoint(folder / PROTOTYPES))


def tasks_of(folder: Path, order: Sequence[str], count: int, prototypes: Mapping) -> list[str]:
    """The first `count` tasks of the order, as the files call them. UserError names what is missing or surplus."""
    files = _by_name({path.stem: path.stem for path in folder.glob("*.pth") if path.name not in NO_TASKS})
    expected = {_fold(name): name for name in order[:count]}
    wrong = [f"the order has {len(order)} tasks, expected {count}"] if len(order) < count else []
    for what, names in (("file", files), (f"entry of {PROTOTYPES}", prototypes)):
        if missing := [expected[name] for name in expected if name not in names]:
            wrong.append(f"missing {what}: {', '.join(missing)}")
        if surplus := sorted(files.get(name, name) for name in names.keys() - expected.keys()):
            wrong.append(f"surplus {what}: {', '.join(surplus)}")
    if wrong:
        raise UserError(
            f'"{folder}" does not hold the first {count} tasks of the order {", ".join(order)}: {"; ".join(wrong)}'
        )
    return [files[name] for name in expected]


def trained(path: Path, unified: Mapping[str, Tensor], clip: ClipBackbone) -> tuple[dict[str, Tensor], dict]:
    """(what was trained of a unified delta, the facts of its space). Parameters that the model does not have are
    the released LoRA's. UserError if names or shapes are not the model's."""
    shapes = {name: value.shape for name, value in clip.module.named_parameters()}
    adapters = [name for name in unified if name not in shapes]
    wrong = [name for name, shape in shapes.items() if name not in unified or unified[name].shape != shape]
    wrong += [name for name in adapters if unified[name].ndim != 2]
    if wrong:
        raise UserError(f'"{path}" is not of {clip.name}: {len(wrong)} names or shapes do not fit ({_few(wrong)})')
    fixed = [name for name in shapes if adapters or name in UNTRAINED]
    if moved := [name for name in fixed if unified[name].any()]:
        what = "which LoRA leaves as they are" if adapters else "which this code does not train"
        raise UserError(f'"{path}" changes {_few(moved)}, {what}')
    if fixed:
        log.info(f"{path}: {len(fixed)} entries of untrained parameters are dropped ({_few(fixed)})")
    kept = {name: value for name, value in unified.items() if name not in fixed}
    if not adapters:
        return kept, {"kind": "full"}
    rank = min(min(kept[name].shape) for name in adapters)
    return kept, {"kind": "lora_factors_released", "rank": rank, "layers": len(adapters) // 2}


def fused(folder: Path, names: Sequence[str], unified: dict[str, Tensor]) -> Fusion:
    """The fusion of a session's trigger files. A task's norm, which they lack, is its scale times what the mask
    leaves of the unified delta's."""
    tensors = {f"unified.{name}": value for name, value in unified.items()}
    facts = {"scale": SCALE, "shapes": [[name, *value.shape] for name, value in unified.items()], "tasks": list(names)}
    facts |= {"scales": [], "norms": []}
    for i, task in enumerate(names):
        masks, scale = _trigger(folder / f"{task}.pth", unified)
        packed = [np.packbits(masks[name].numpy().reshape(-1), bitorder="little") for name in unified]
        tensors[f"mask.{i}"] = torch.from_numpy(np.concatenate(packed))
        facts["scales"].append(scale)
        facts["norms"].append(scale * sum(size(value * masks[name], SCALE) for name, value in unified.items()))
    try:
        return Fusion.from_state(tensors, facts)
    except ValueError as error:
        raise UserError(f'"{folder}": {error}') from error


def _trigger(path: Path, unified: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    content = load_checkpoint(path)
    masks, rescaler = content.get("masks"), content.get("rescalers")
    if not isinstance(masks, dict) or not isinstance(rescaler, Tensor):
        raise UserError(f'"{path}" holds {", ".join(map(str, content))}, expected masks and rescalers')
    masks = _tensors(path, masks, torch.bool)
    if wrong := [name for name in unified if name not in masks or masks[name].shape != unified[name].shape]:
        raise UserError(f'"{path}" has no mask that fits {len(wrong)} tensors of {UNIFIED} ({_few(wrong)})')
    whole = is_plain_tensor(rescaler) and rescaler.numel() == 1 and rescaler.is_floating_point()
    if not whole or not 0 < rescaler.item() < math.inf:
        raise UserError(f'"{path}" has the rescaler {rescaler}, expected one positive number')
    return masks, rescaler.item()


def _task(name: str, count: int, classes: Mapping) -> Task:
    entry = _by_name(classes).get(_fold(name))
    if entry is None:
        raise UserError(f"No class names of {name} were given; given: {', '.join(classes) or 'none'}")
    entry = {"prompts": PROMPTS} | (entry if isinstance(entry, dict) else {"classnames": entry})
    names, prompts = entry.get("classnames"), entry["prompts"]
    if not isinstance(names, list) or not isinstance(prompts, list) or not prompts:
        raise UserError(f"{name}: class names and prompts must be lists of texts, but got {entry!r}")
    if len(names) != count:
        raise UserError(f"{name} has {len(names)} class names, but {count} prototypes in {PROTOTYPES}")
    return Task(name, names, prompts, {"imported": "released ConDU"})


def _rows(path: Path, name: str, rows: Sequence) -> Tensor:
    """A task's prototypes as one (C, D) tensor."""
    plain = isinstance(rows, list) and all(map(is_plain_tensor, rows))
    if not plain or len({row.numel() for row in rows}) != 1:
        raise UserError(f'"{path}": the prototypes of {name} are no plain tensors, or not vectors of one length')
    return torch.stack([row.detach().float().reshape(-1) for row in rows])


def _tensors(path: Path, content: Mapping, dtype: torch.dtype) -> dict[str, Tensor]:
    content = strip_module({str(name): value for name, value in content.items()})
    for name, value in content.items():
        if not is_plain_tensor(value) or value.dtype != dtype:
            kind = getattr(value, "dtype", type(value).__name__)
            raise UserError(f'"{path}": {name} is no plain tensor of {dtype}, but {kind}')
    return {name: value.detach().contiguous() for name, value in content.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _fold(name: object) -> str:
    return str(name).replace("_", "").lower()


def _by_name(content: Mapping) -> dict:
    """Case and "_" do not matter in the names of tasks."""
    return {_fold(name): value for name, value in content.items()}


def import_released(
    folders: Sequence, to, order: Sequence[str], classes: Mapping, clip: ClipBackbone, half: bool = False
) -> Stream:
    """Write the folders' sessions into a new stream `to`, all kept -> the last one. Raises as `stream_of` and
    `Stream.save`; UserError for two folders of one session, and where `to` holds a stream."""
    if sessions(to):
        raise UserError(f'"{to}" holds a stream already: give another folder')
    counts = {Path(folder): count_tasks(Path(folder)) for folder in folders}
    if len(set(counts.values())) < len(folders):
        raise UserError(f"Two folders are of one session: {', '.join(f'{f} has {n} tasks' for f, n in counts.items())}")
    for folder in sorted(counts, key=counts.get):
        stream = stream_of(folder, order, classes, clip)
        stream.save(to, history=True, half=half)
    return stream
