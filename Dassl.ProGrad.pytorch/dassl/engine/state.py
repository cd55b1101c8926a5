"""What is state in a running trainer: random generators, objects that save themselves, changing numbers."""

import random
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from .base import TrainerBase


def stateful(trainer: TrainerBase) -> Iterator[tuple[str, Any]]:
    """(name, part) for each attribute, or member of a list, tuple or dict, that can save and load itself.

    Registered models, optimizers and schedulers are not among them.
    """
    groups = trainer._models, trainer._optims, trainer._scheds
    registered = {id(part) for group in groups for part in group.values()}
    for name, value in vars(trainer).items():
        members = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        parts = {f"{name}.{key}": m for key, m in members.items()} if isinstance(members, Mapping) else {name: value}
        for label, part in parts.items():
            able = all(callable(getattr(part, verb, None)) for verb in ("state_dict", "load_state_dict"))
            if able and id(part) not in registered and not isinstance(part, type):
                yield label, part


def running_loaders(trainer: TrainerBase) -> dict[str, Any]:
    """{name: loader} of the loaders whose persistent workers have started."""
    names = ("train_loader_x", "train_loader_u", "val_loader", "test_loader")
    loaders = {name: getattr(trainer, name, None) for name in names}
    return {name: loader for name, loader in loaders.items() if getattr(loader, "_iterator", None) is not None}


def stop_workers(trainer: TrainerBase) -> None:
    """End persistent workers; a later pass starts new ones.

    Left to the garbage collector, which closes their queues first, each would be waited for 5 seconds.
    """
    for loader in running_loaders(trainer).values():
        loader._iterator._shutdown_workers()
        loader._iterator = None


def tensor_like(value: object) -> bool:
    """Whether it is a tensor with numbers in it."""
    return isinstance(value, torch.Tensor) and value.numel() > 0


def memory(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors that are the same piece of memory."""
    where = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.device)


def fingerprint(tensor: torch.Tensor) -> tuple:
    """Differs once a tensor has changed -> (its memory, torch's count of writes to it, the sum of its bits).

    Writes through `.data` are not counted, so the bits are needed; 40 ms for 600 MB.
    """
    tensor = tensor.detach()
    if not tensor_like(tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return 0, 0, 0
    whole = tensor.is_contiguous() and not tensor.storage_offset()
    flat = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    octets = flat.view(-1).view(torch.uint8)
    words = len(octets) // 8 * 8
    bits = octets[:words].view(torch.int64).sum() + octets[words:].sum()
    writes = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), writes, bits.item()


def trace(value: object) -> list:
    """Differs once a number, a text or a tensor has changed, or one in a container."""
    kinds = bool | int | float | complex | str | np.number | torch.Tensor
    members = [member for member in tree_leaves(value) if isinstance(member, kinds)]
    return [(m.shape, fingerprint(m)[-1]) if isinstance(m, torch.Tensor) else repr(m) for m in members]


def plain(value: Any) -> Any:
    """`value` rebuilt of what `torch.load(weights_only=True)` reads. Raises TypeError for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes, torch.dtype, torch.Size, torch.device):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, OrderedDict):
        copy: Any = OrderedDict((plain(key), plain(member)) for key, member in value.items())
        if hasattr(value, "_metadata"):  # versions of a module's parts
            copy._metadata = plain(value._metadata)
        return copy
    if isinstance(value, Mapping):
        return {plain(key): plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [plain(member) for member in value]
    if isinstance(value, tuple):
        return tuple(plain(member) for member in value)
    raise TypeError(f"a {type(value).__name__} is no plain value")


def saved(name: str, state: Any) -> Any:
    """`plain`; None, with a warning, of what holds other values."""
    try:
        return plain(state)
    except TypeError as error:
        warnings.warn(f"resume.pt does not hold {name}, which training changes: {error}", stacklevel=2)
        return None


def rng_state() -> dict:
    """States of Python's, NumPy's and torch's global generators, the GPUs' included, as plain values.

    The 600 words of a Mersenne twister go into tensors: as single numbers they would cost most of a save.
    """
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": (version, torch.tensor(words), gauss),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(state: Mapping) -> None:
    """Put back what `rng_state` gave. CUDA states only where the number of devices is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if torch.backends.mps.is_available() and state.get("mps") is not None:
        torch.mps.set_rng_state(state["mps"])


# What the engine itself moves, or restores by other means
_RESTORED = {"_epoch", "batch_idx", "num_batches", "start_epoch", "max_epoch", "best_result", "time_start",
             "step_metrics", "_share", "_history"}  # fmt: skip


class Attributes:
    """What training changes in a trainer beside its registered models: in the parts that save themselves, and in plain
    attributes (numbers, texts, tensors, parameters, containers of all but those).

    Of a module only the tensors are saved that training has changed, and that no registered model holds.
    """

    def __init__(self, trainer: TrainerBase) -> None:
        self.trainer = trainer
        self._kept: dict[str, set] = {}  # part -> keys that were saved
        self._changed: set[str] = set()  # plain attributes that were saved

    def begin(self) -> None:
        """Right before the first epoch: note what can change."""
        self._before = {
            (name, key): fingerprint(tensor)
            for name, part in stateful(self.trainer)
            if isinstance(part, nn.Module)
            for key, tensor in part.state_dict().items()
            if isinstance(tensor, torch.Tensor)
        }
        self._traces = {name: trace(value) for name, value in vars(self.trainer).items()}

    def state(self) -> dict[str, dict]:
        """{"attributes": {part: its state}, "values": {attribute: what it is}}."""
        tensors = [t for model in self.trainer._models.values() for t in model.state_dict().values()]
        seen = {memory(tensor) for tensor in tensors if tensor_like(tensor)}
        parts = {}
        for name, part in stateful(self.trainer):
            state = part.state_dict()
            if isinstance(part, nn.Module):
                state = {key: value for key, value in state.items() if self._is_news(name, key, value, seen)}
            parts[name] = saved(name, state)
        moved = [name for name, value in vars(self.trainer).items() if self._moved(name, value, seen)]
        values = {name: saved(name, getattr(self.trainer, name)) for name in moved}
        parts, values = ({k: v for k, v in group.items() if v is not None} for group in (parts, values))
        self._kept = {name: set(state) for name, state in parts.items()}
        return {"attributes": parts, "values": values}

    def _is_news(self, name, key, value, seen):
        """Must this entry of a module be saved? Not if a registered model holds it or nothing changed it."""
        if not tensor_like(value):
            return True
        if memory(value) in seen:
            return False
        seen.add(memory(value))
        return key in self._kept.get(name, ()) or self._before.get((name, key)) != fingerprint(value)

    def _moved(self, name, value, seen):
        """Must this attribute be saved? Not if a saved module holds it or nothing changed it."""
        if name in _RESTORED or name not in self._changed and trace(value) == self._traces.get(name, []):
            return False
        tensors = filter(tensor_like, tree_leaves(value))
        return not any(memory(tensor) in seen or tensor.requires_grad and tensor is not value for tensor in tensors)

    def restore(self, parts: Mapping[str, Mapping], values: Mapping[str, Any]) -> None:
        """Put back what `state` gave; tensors of plain attributes lie on the trainer's device."""
        for name, part in stateful(self.trainer):
            if name in parts:
                strict = {"strict": False} if isinstance(part, nn.Module) else {}
                part.load_state_dict(parts[name], **strict)
                self._kept[name] = set(parts[name])
        device = self.trainer.device
        for name, value in values.items():
            if isinstance(parameter := getattr(self.trainer, name, None), nn.Parameter):
                parameter.data.copy_(value)  # an optimizer may hold it
            else:
                moved = tree_map(lambda m: m.to(device) if isinstance(m, torch.Tensor) else m, value)
                setattr(self.trainer, name, moved)
        self._changed = set(values)
