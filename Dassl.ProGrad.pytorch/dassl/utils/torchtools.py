"""Checkpoints, and small helpers for modules. N: epochs done."""

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import init
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checkpoints import check_kind, restricted_load
from .errors import MissingFile, UserError, brief
from .files import atomic_save, atomic_write, read_text
from .logger import get_logger
from .tensorfile import read_safetensors
from .tools import tolist_if_not

_TOKEN_BUFFERS = {
    "token_prefix", "token_suffix", "token_midfix", "token_prefix2", "token_suffix2", "tokenized_prompts",
    "bias_vectors",
}  # fmt: skip
_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
# what code bases call the weights in a checkpoint, beside "state_dict"
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
_DEEPEST = 4


class Weights(NamedTuple):
    """What a file of weights holds. epoch: epochs done; val_result: percent; None where it does not say."""

    state_dict: OrderedDict
    epoch: int | None
    val_result: float | None


def strip_module(state_dict: Mapping) -> OrderedDict:
    """A copy whose keys have lost what wrappers put before them: "module." (data-parallel), "_orig_mod." (compiled).
    UserError: two keys become one."""
    stripped = OrderedDict()
    for key, value in state_dict.items():
        name = _WRAPPED.sub("", key)
        if name in stripped:
            raise UserError(f"{name} is there twice, with and without what a wrapper puts before it")
        stripped[name] = value
    return stripped


def is_plain_tensor(value: object) -> bool:
    """Whether it is a tensor with its numbers in memory: dense, on the CPU, not quantized."""
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def check_weights(where: object, state_dict: Mapping) -> None:
    """UserError names what cannot be weights of a model: no plain tensor, or infinite. where: begins the message."""
    for key, value in state_dict.items():
        if not is_plain_tensor(value):
            raise UserError(f"{where}: {key} is no plain tensor")
        if not (value.float() if value.element_size() == 1 else value).isfinite().all():  # 8-bit floats know little
            raise UserError(f"{where}: {key} is infinite or NaN, there is nothing to go on with")


def drop_token_buffers(state_dict: dict) -> dict:
    """Remove, in place, what depends on the class names and not on training; returns `state_dict`."""
    for key in list(state_dict):
        # "token_embedding.weight" below a text tower is a trained weight, a bare "token_embedding" a buffer
        if key == "token_embedding" or key.rpartition(".")[2] in _TOKEN_BUFFERS:
            del state_dict[key]
    return state_dict


def save_checkpoint(
    state: dict,
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write `state` as `model.pth.tar-N` (N = state["epoch"]) or `model_name`, and name it in `checkpoint`.

    The pointer changes after the file is whole. `is_best` also copies it to `model-best.pth.tar`.
    WriteFailed: earlier files are untouched.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module(state["state_dict"])}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    atomic_save(state, path)
    get_logger().info(f"Checkpoint saved to {path}")
    with atomic_write(os.path.join(save_dir, "checkpoint"), "w") as file:
        file.write(name + "\n")
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        atomic_save(state, best)
        get_logger().info(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath: str | os.PathLike, scripts: bool = False) -> dict:
    """Dictionary in a checkpoint file, on the CPU, read without running code; `state_dict`, if any, is an OrderedDict.

    Live schedulers and optimizers of old files come back as inert objects. scripts: as `restricted_load`.
    MissingFile: no such file. UserError: no path, damaged, foreign or hostile; names the file.
    """
    if fpath is None:
        raise UserError("File path is None")
    fpath = os.fspath(fpath)
    if fpath.endswith(".safetensors"):
        check_kind(fpath)
        return read_safetensors(fpath)[0]
    checkpoint = restricted_load(fpath, scripts)
    if not isinstance(checkpoint, dict):
        raise UserError(f'"{fpath}" holds a {type(checkpoint).__name__}, but a checkpoint is a dictionary')
    if "state_dict" in checkpoint:
        if not isinstance(checkpoint["state_dict"], dict):
            raise UserError(f'"state_dict" in "{fpath}" is no dictionary')
        if not all(isinstance(key, str) for key in checkpoint["state_dict"]):
            raise UserError(f'"state_dict" in "{fpath}" has keys that are no names')
        checkpoint["state_dict"] = OrderedDict(checkpoint["state_dict"])
    if "epoch" in checkpoint:
        checkpoint["epoch"] = _number(checkpoint["epoch"], checkpoint["epoch"])
    return checkpoint


def _number(value, default=None):
    """The Python number of a number, a NumPy one, or a tensor of one; an int where it is whole."""
    if (is_plain_tensor(value) and value.numel() == 1) or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return int(value) if float(value).is_integer() else value


def load_weights(fpath: str | os.PathLike, scripts: bool = False) -> Weights:
    """The weights in a file, whoever wrote it -> Weights, on the CPU; read without running code.

    A state dict, or a checkpoint that has one under a usual name, also within another; wrappers' prefixes go (see
    `strip_module`), and so does what is no tensor: numbers, arguments, optimizers. scripts: TorchScript archives too.
    MissingFile: no such file. UserError: damaged, foreign or hostile, or without a tensor; names the file.
    """
    content = checkpoint = load_checkpoint(fpath, scripts)
    for _ in range(_DEEPEST):
        inner = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    epoch, result = _number(checkpoint.get("epoch")), _number(checkpoint.get("val_result"))
    if content is checkpoint:
        tensors.pop("epoch", None)
    if not tensors:
        raise UserError(f'"{fpath}" holds no weights, but {brief(list(content)[:8])}')
    if not all(isinstance(key, str) for key in tensors):
        raise UserError(f'"{fpath}" has keys that are no names')
    try:
        return Weights(strip_module(tensors), epoch if isinstance(epoch, int) else None, result)
    except UserError as error:
        raise UserError(f'"{fpath}": {error}') from None


def pointed_at(folder: str | os.PathLike) -> str:
    """Path that the file `checkpoint` in a model's folder names. MissingFile: there is none."""
    pointer = os.path.join(folder, "checkpoint")
    if not os.path.isfile(pointer):
        raise MissingFile(f'No file "checkpoint" in "{folder}" says which model to resume from')
    return os.path.join(folder, os.path.basename(read_text(pointer).partition("\n")[0].strip()))


def resume_from_checkpoint(
    fdir: str | os.PathLike, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Restore what the pointer file in `fdir` names; returns the epoch to go on with (epochs done).

    MissingFile: no pointer, or it names a file that is gone. UserError: damaged file, or other parameters than the
    model's.
    """
    fpath = pointed_at(fdir)
    logger = get_logger()
    logger.info(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        logger.info("Loaded model weights")
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None and checkpoint.get(name) is not None:
                part.load_state_dict(checkpoint[name])
                logger.info(f"Loaded {name}")
        epoch = checkpoint["epoch"]
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f'"{fpath}" does not fit this run: {error}') from error
    logger.info(f"Previous epoch: {epoch}")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Copy into `model` every tensor of the file whose name and shape fit; warns if none does."""
    weights = load_weights(weight_path).state_dict
    wanted = model.state_dict()
    fits = {key: value for key, value in weights.items() if key in wanted and value.shape == wanted[key].shape}
    model.load_state_dict(fits, strict=False)
    if not fits:
        warnings.warn(f'Cannot load "{weight_path}": no name and shape in it fits the model', stacklevel=2)
        return
    get_logger().info(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in weights if key not in fits]
    if discarded:
        get_logger().info(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Number of values in the parameters of `model`, or in `params` (parameters or groups of them)."""
    if model is not None:
        params = model.parameters()
    if params is None:
        raise UserError("count_num_param needs a model or parameters")
    groups = (item["params"] if isinstance(item, dict) else [item] for item in params)
    return sum(param.numel() for group in groups for param in group)


def open_all_layers(model: nn.Module) -> None:
    """Train mode and gradients for every parameter."""
    model.train()
    for param in model.parameters():
        param.requires_grad = True


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train mode and gradients for the direct children named in `open_layers`, the others are frozen.
    UserError: the model has no such child."""
    model = model.module if isinstance(model, nn.DataParallel) else model
    names = tolist_if_not(open_layers)
    children = dict(model.named_children())
    for name in names:
        if name not in children:
            raise UserError(f'"{name}" is not a layer of the model, which has {list(children)}')
    for name, child in children.items():
        child.train(name in names)
        for param in child.parameters():
            param.requires_grad = name in names


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise linear and convolution layers (normal, xavier, kaiming, orthogonal); biases 0, norms 1."""
    rules = {
        "normal": lambda weight: init.normal_(weight, 0.0, gain),
        "xavier": lambda weight: init.xavier_normal_(weight, gain=gain),
        "kaiming": lambda weight: init.kaiming_normal_(weight, a=0, mode="fan_in"),
        "orthogonal": lambda weight: init.orthogonal_(weight, gain=gain),
    }
    if init_type not in rules:
        raise UserError(f"init_type must be one of {list(rules)}, but got {init_type}")

    def initialise(module):
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None or not ("Conv" in kind or "Linear" in kind or "Norm" in kind):
            return
        if "Norm" in kind:
            init.constant_(weight, 1.0)
        else:
            rules[init_type](weight)
        if bias is not None:
            init.constant_(bias, 0.0)

    model.apply(initialise)


def set_bn_to_eval(m: nn.Module) -> None:
    """For `model.apply`: a batch norm keeps its running statistics, also in training; its weights still train."""
    if "BatchNorm" in type(m).__name__:
        m.eval()


def adjust_learning_rate(
    optimizer: Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Set the rate of every parameter group: times gamma each `stepsize` epochs, or in a line to `final_lr`."""
    done = epoch / max_epoch
    lr = done * final_lr + (1 - done) * base_lr if linear_decay else base_lr * gamma ** (epoch // stepsize)
    for group in optimizer.param_groups:
        group["lr"] = lr
