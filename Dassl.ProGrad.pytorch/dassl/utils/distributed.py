"""Several processes that train one model (`torchrun --nproc_per_node N train.py ...`); of no effect in one process.

No model is wrapped in DataParallel or DistributedDataParallel: methods hook into towers and call functions of a
module other than `forward`, which replicas lose and wrappers hide. Every process holds the whole model, sees its
part of each batch, and takes the step of the averaged gradients.

Gloo carries what lies on a CPU, NCCL what lies on a GPU. Letters: W processes, P parameters.
"""

import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dassl.utils.moved import old_names

from .errors import UserError
from .logger import quiet
from .torchrun import launched, one_process  # noqa: F401  imported from here by commands

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # one process may write or evaluate for long while the others wait
_FAILURE = "failure"  # key in the store of the first failure
_groups = itertools.count()
_stores: list[dist.Store] = []  # of the open group: at most one
_turns: list[bool] = []  # not empty while one process after the other does the same


class PeerFailure(SystemExit):
    """Another process of this run has failed and says why itself: this one ends without a word, status 1."""

    def __init__(self, reason: str) -> None:
        super().__init__(1)
        self.reason = reason


def world_size() -> int:
    """Number W of processes of this run."""
    return dist.get_world_size() if _open() else 1


def rank() -> int:
    """Number of this process, 0 to W - 1."""
    return dist.get_rank() if _open() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and the log."""
    return rank() == 0


def shard(count: int, number: int | None = None) -> slice:
    """Slice of `count` things that falls to process `number`: contiguous, of equal size or one apart, maybe empty.

    Default: this process. The main one has the largest.
    """
    size, number = world_size(), rank() if number is None else number
    return slice(-(-count * number // size), -(-count * (number + 1) // size))


def is_collective() -> bool:
    """Do several processes run the same lines now? Then they can do parts of one work, and must exchange alike."""
    return world_size() > 1 and not _turns


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The main process does the block first, then the others: it may keep on disk what they find there."""
    if not is_main():
        barrier()
    _turns.append(True)
    try:
        yield
    finally:
        _turns.pop()
    if is_main():
        barrier()


# The group


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The processes that torchrun started work together while the block lasts; inside another such block, nothing.

    Of several processes that fail, the first raises its error; the others raise PeerFailure.
    UserError: torchrun's environment is incomplete, or a process was lost without a word.
    """
    if not launched() or _open():
        yield
        return
    _join()
    try:
        with contextlib.nullcontext() if is_main() else quiet(logging.WARNING):
            yield
            barrier()  # nobody leaves while another still writes
    except PeerFailure:
        raise
    except BaseException as error:
        said = _announce(error)
        if said and isinstance(error, Exception):
            raise PeerFailure(said) from error
        raise
    finally:
        _stores.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def own_device(cuda: bool) -> Iterator[None]:
    """With `cuda`, "cuda" means the GPU of this process. UserError if there are fewer GPUs than processes here."""
    if world_size() == 1 or not cuda or not torch.cuda.is_available():
        yield
        return
    local, there = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local >= there:
        raise UserError(f"Process {local} of this machine has no GPU of its own, there are {there}: start {there}")
    with torch.cuda.device(local):
        yield


def _open():
    return dist.is_available() and dist.is_initialized()


@functools.cache
def _rendezvous():
    """(store, rank, W) of torchrun; the store is made once, for its port is taken from then on."""
    return next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))


def _join():
    try:
        store, number, size = _rendezvous()
        name = f"dassl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_groups)}"
        store = dist.PrefixStore(name, store)
        both = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo", store=store, rank=number, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of this run do not find each other: {_line(error)}") from error
    _stores.append(store)


# Failures


def _announce(error):
    """Leave word for the others that this process fails -> what an earlier one said, or "" if this is the first."""
    mine = f"process {rank()}: {_line(error)}"
    try:
        said = _stores[0].compare_set(_FAILURE, "", mine).decode(errors="replace")
    except (RuntimeError, IndexError):
        return "process 0: it kept the store, and is gone"
    return "" if said == mine else said


def _exchange(function, *args):
    """`function(*args)` of several processes. One that does not answer has failed, and most leave word why."""
    if world_size() == 1:
        return
    try:
        function(*args)
    except RuntimeError as error:
        lost = UserError(f"Another process of this run was lost: {_line(error)}")
        if said := _announce(lost):
            raise PeerFailure(said) from error
        raise lost from error


def _line(error):
    """The first line of an error; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# Exchanges


def all_reduce(tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
    """Combine a contiguous `tensor` over all processes, in place -> it. op: sum, max or min."""
    _exchange(dist.all_reduce, tensor, getattr(dist.ReduceOp, op.upper()))
    return tensor


def barrier() -> None:
    """Wait until every process is here."""
    all_reduce(torch.zeros(1))


def broadcast(value: T) -> T:
    """The main process's `value`, as pickle takes it; tensors come back on the CPU if they were there."""
    values = [value]
    _exchange(dist.broadcast_object_list, values, 0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every process's `value`, each as `broadcast` takes it -> a list by rank, the same everywhere."""
    values = [value] * world_size()
    _exchange(dist.all_gather_object, values, value)
    return values


def of_all(rows: Sequence[dict], shares: Sequence[float]) -> Sequence[dict]:
    """[{name: number or scalar tensor}, ...] of this process's shares of batches -> of the whole batches."""
    if world_size() == 1:
        return rows
    pairs = [(value, share) for row, share in zip(rows, shares, strict=True) for value in row.values()]
    mine = [torch.as_tensor(value).detach().to("cpu", torch.float64).reshape(()) * share for value, share in pairs]
    whole = iter(all_reduce(torch.stack(mine)).unbind())
    return [{name: next(whole) for name in row} for row in rows]


def gather_batches(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every process's list of tensors (b, ...), maybe empty -> one list of them, on the CPU, in order of rank."""
    mine = torch.cat(batches).cpu() if batches else None
    return [rows for rows in gather(mine) if rows is not None]


def gather_to_main(value: T) -> list[T] | None:
    """Every process's `value`, each as `broadcast` takes it -> a list by rank in the main process, None in others."""
    values = [value] * world_size() if is_main() else None
    _exchange(dist.gather_object, value, values)
    return values


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite `tensors`, in place, with those of the main process."""
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        _exchange(dist.broadcast, sent, 0)
        tensor.copy_(sent)


@torch.no_grad()
def average_gradients(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Replace the gradients of all that `optimizers` step by their mean over the processes, right before a step.

    A process without a gradient counts as zero; where no process has one, there is none afterwards.
    """
    if world_size() == 1:
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    params = list(dict.fromkeys(p for group in groups for p in group["params"] if p.requires_grad))
    somewhere = all_reduce(torch.tensor([p.grad is not None for p in params], dtype=torch.uint8), "max")
    for p, there in zip(params, somewhere.tolist(), strict=True):
        if there:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            grad.div_(world_size())  # before the sum: that of halves can overflow where their mean does not
            p.grad = grad.copy_(all_reduce(grad.contiguous()))


__getattr__ = old_names(__name__)
