"""Merging fine-tuned weights without training, as functions of state dicts.

Average; WiSE-FT (Wortsman et al., arXiv 2109.01903); task arithmetic (Ilharco et al., 2212.04089); TIES (Yadav et
al., 2306.01708); DARE (Yu et al., 2311.03099); SLERP (Shoemake, SIGGRAPH 1985); EMR (Huang et al., 2405.17461).

A state is {name: tensor}. `base` are the weights that all parents were fine-tuned from, and parent - base is a task
vector. Sums are taken in double precision, one tensor at a time, and come back in the parents' own dtype.
Integer tensors and the running statistics of batch norm are no weights: they are taken from the first parent and
must agree, unless `keep` names them (by full name or by its last part).
All functions raise ValueError for states or values that do not fit.
Letters: n parents, d values of all merged tensors together.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from dassl.merging.records import check_method

State = Mapping[str, Tensor]
Rule = Callable[[str, Tensor], Tensor]  # (name, task vectors (n, *shape)) -> (*shape)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PARALLEL = 0.9995  # from this cosine on the arc is taken for its chord, which differs by less than 2e-4


def check_alike(states: Sequence[State], labels: Sequence[str] = (), keep: Collection[str] = ()) -> list[str]:
    """The names to merge, sorted. Refuses states of other names, shapes or dtypes, naming the key and both."""
    if not states:
        raise ValueError("Nothing to merge: no parent was given")
    labels = labels or [f"parent {i}" for i in range(1, len(states) + 1)]
    first = states[0]
    for other, label in zip(states[1:], labels[1:], strict=True):
        for name in sorted(first.keys() | other.keys()):
            if name not in first or name not in other:
                has, lacks = (labels[0], label) if name in first else (label, labels[0])
                raise ValueError(f"{name} is in {has}, but not in {lacks}")
            if _kind(first[name]) != _kind(other[name]):
                raise ValueError(f"{name} is {_kind(first[name])} in {labels[0]} and {_kind(other[name])} in {label}")
            kept = {name, name.rpartition(".")[2]} & {*keep}
            if not is_weight(name, first[name]) and not kept and not first[name].equal(other[name]):
                raise ValueError(
                    f"{name} is no weight to merge, and it differs between {labels[0]} and {label}: "
                    f"name it in `keep` to take that of {labels[0]}"
                )
    return [name for name in sorted(first) if is_weight(name, first[name])]


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def is_weight(name: str, value: Tensor) -> bool:
    """Is it merged, and not taken from the first parent?"""
    return value.is_floating_point() and name.rpartition(".")[2] not in STATISTICS


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low:g} to {high:g}")


def _combine(states: Sequence[State], rule: Callable[[str, list[Tensor]], Tensor], keep: Collection[str]) -> dict:
    """`rule` of every merged tensor, in double precision; all else from the first state."""
    out = {name: value.clone() for name, value in states[0].items()}
    for name in check_alike(states, keep=keep):
        out[name] = rule(name, [state[name].double() for state in states]).to(out[name].dtype)
    return out


def _on_tasks(base: State, parents: Sequence[State], rule: Rule, scale: float, keep: Collection[str]) -> dict:
    """base + scale * rule(task vectors)."""
    def apply(name: str, values: list[Tensor]) -> Tensor:
        *tuned, start = values
        return start + scale * rule(name, torch.stack(tuned) - start)

    return _combine([*parents, base], apply, keep)


def average(
    parents: Sequence[State], weights: Sequence[float] | None = None, *, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """sum_i weights_i parent_i; the weights are divided by their sum, default equal."""
    shares = [1.0] * len(parents) if weights is None else [float(w) for w in weights]
    if len(shares) != len(parents):
        raise ValueError(f"{len(shares)} weights for {len(parents)} parents")
    total = math.fsum(shares)
    if not math.isfinite(total) or abs(total) < 1e-12:
        raise ValueError(f"The weights {shares} have the sum {total:g}, expected another than 0")
    zero = torch.zeros((), dtype=torch.float64)

    def rule(_: str, values: list[Tensor]) -> Tensor:
        return sum((share / total * value for share, value in zip(shares, values, strict=True)), zero)

    return _combine(parents, rule, keep)


def wise_ft(zero_shot: State, fine_tuned: State, alpha: float = 0.5, *, keep: Collection[str] = ()) -> dict:
    """(1 - alpha) zero_shot + alpha fine_tuned."""
    _in_range("alpha", alpha, 0, 1)
    return _combine([fine_tuned, zero_shot], lambda _, v: (1 - alpha) * v[1] + alpha * v[0], keep)


def task_arithmetic(base: State, parents: Sequence[State], scale: float = 0.4, *, keep: Collection[str] = ()) -> dict:
    """base + scale * sum of the task vectors."""
    return _on_tasks(base, parents, lambda _, tasks: tasks.sum(0), scale, keep)


def ties(
    base: State, parents: Sequence[State], density: float = 0.2, scale: float = 1.0, *, keep: Collection[str] = ()
) -> dict[str, Tensor]:
    """Trim each task vector to its `density` * d largest magnitudes, elect a sign a value, average those that agree.

    The magnitudes compete over the whole vector, not within a tensor. Values as large as the smallest one kept are
    kept too, so that the order of names does not matter.
    """
    names = check_alike([*parents, base], keep=keep)
    floors = [_trim_floor(base, parent, names, density) for parent in parents]

    def rule(_: str, tasks: Tensor) -> Tensor:
        kept = [torch.where(_size(task) >= floor, task, 0.0) for task, floor in zip(tasks, floors, strict=True)]
        return _elected_mean(torch.stack(kept))

    return _on_tasks(base, parents, rule, scale, keep)


def _size(task: Tensor) -> Tensor:
    """Magnitudes in single precision, which halves the memory of the one vector that must be whole."""
    return task.abs().float()


def _trim_floor(base: State, parent: State, names: Sequence[str], density: float) -> float:
    """The smallest magnitude among the `density` * d largest of a task vector."""
    _in_range("density", density, 0, 1)
    parts = [_size(parent[name].double() - base[name].double()).flatten() for name in names]
    sizes = torch.cat(parts or [torch.zeros(1)])
    count = round(density * sizes.numel())
    return sizes.kthvalue(sizes.numel() - count + 1).values.item() if count else math.inf


def _elected_mean(tasks: Tensor) -> Tensor:
    """Mean over the parents whose value has the sign of the sum; 0 where the sum is. (n, *shape) -> (*shape)."""
    agrees = (tasks.sign() == tasks.sum(0).sign()) & (tasks != 0)
    return torch.where(agrees, tasks, 0.0).sum(0) / agrees.sum(0).clamp_min(1)


THEN: dict[str, Callable] = {  # (n, *shape) -> (*shape)
    "average": lambda tasks: tasks.mean(0),
    "sum": lambda tasks: tasks.sum(0),
    "ties": _elected_mean,
}


def dare(
    base: State,
    parents: Sequence[State],
    density: float = 0.1,
    scale: float = 1.0,
    seed: int = 1,
    then: str = "average",
    *,
    keep: Collection[str] = (),
) -> dict[str, Tensor]:
    """Keep each value of a task vector with probability `density`, divided by it, then combine the vectors.

    then: average, sum (task arithmetic), or ties (sign election and mean of those that agree, without trimming).
    The draw is made on the CPU in order of names, parent after parent: device and order of names do not matter.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}, expected above 0, up to 1")
    if then not in THEN:
        raise ValueError(f"then is {then!r}, expected one of {', '.join(THEN)}")
    names = check_alike([*parents, base], keep=keep)
    generator = torch.Generator().manual_seed(seed)
    masks = [{name: torch.rand(base[name].shape, generator=generator) < density for name in names} for _ in parents]

    def rule(name: str, tasks: Tensor) -> Tensor:
        mask = torch.stack([kept[name] for kept in masks]).to(tasks.device)
        return THEN[then](tasks * mask / density)

    return _on_tasks(base, parents, rule, scale, keep)


def slerp(a: State, b: State, t: float = 0.5, per: str = "whole", *, keep: Collection[str] = ()) -> dict:
    """From a (t = 0) to b (t = 1) on the arc between them: equal norms stay.

    per: one angle for the `whole` vector, or one for each `tensor`. Nearly parallel or opposite vectors, and zeros,
    have no arc of their own: they are joined by a straight line.
    """
    _in_range("t", t, 0, 1)
    if per not in ("whole", "tensor"):
        raise ValueError(f"per is {per!r}, expected whole or tensor")
    names = check_alike([a, b], keep=keep)
    groups = [names] if per == "whole" else [[name] for name in names]
    shares = {name: pair for group in groups for pair in [_arc(a, b, group, t)] for name in group}
    return _combine([a, b], lambda name, v: shares[name][0] * v[0] + shares[name][1] * v[1], keep)


def _arc(a: State, b: State, names: Sequence[str], t: float) -> tuple[float, float]:
    """The shares of a and b at t of the arc."""
    aa, bb, ab = (_inner(x, y, names) for x, y in ((a, a), (b, b), (a, b)))
    cosine = ab / math.sqrt(aa * bb) if aa and bb else 1.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _inner(x: State, y: State, names: Sequence[str]) -> float:
    return math.fsum((x[name].double() * y[name].double()).sum().item() for name in names)


def elect(tasks: Tensor) -> tuple[Tensor, Tensor]:
    """Of (n, *shape): the largest value where the sum is positive, else the smallest -> (*shape); and which values have
    that sign, bool (n, *shape)."""
    positive = tasks.sum(0) > 0
    elected = torch.where(positive, tasks.amax(0), tasks.amin(0))
    return elected, torch.where(positive, tasks > 0, tasks < 0)


def emr(base: State, parents: Sequence[State], task: int = 1, *, keep: Collection[str] = ()) -> dict[str, Tensor]:
    """What parent `task`, counted from 1, becomes, or for 0, an unknown task, base + the unified vector.

    Elect the sign of the sum (where that is 0, the negative one) and the largest magnitude of that sign; mask what
    agrees with the parent's task vector; rescale to the L1 norm of that.
    """
    if not 0 <= task <= len(parents):
        raise ValueError(f"task is {task}, expected 1 to {len(parents)}, or 0 for the unified model")

    def rule(_: str, tasks: Tensor) -> Tensor:
        unified, agrees = elect(tasks)
        return agrees[task - 1] * unified if task else unified

    size, left = [], []
    for name in check_alike([*parents, base], keep=keep):
        tasks = torch.stack([parent[name].double() for parent in parents]) - base[name].double()
        size.append(tasks[task - 1].abs().sum().item())
        left.append(rule(name, tasks).abs().sum().item())
    scale = 1.0 if not task else math.fsum(size) / math.fsum(left) if any(left) else 0.0
    return _on_tasks(base, parents, rule, scale, keep)


def merge(
    method: str, parents: Sequence[State], base: State | None = None, *, keep: Collection[str] = (), **values
) -> dict[str, Tensor]:
    """Merge by a name of METHODS; values that are not given have their defaults."""
    record = check_method(method, len(parents), values)
    if record.needs_base and base is None:
        raise ValueError(f"{method} merges task vectors and needs the base weights")
    weights = [parents] if record.most is None else parents  # one or two by themselves, any number as a list
    return FUNCTIONS[method](*([base] if record.needs_base else []), *weights, keep=keep, **values)


RULES: tuple[Callable[..., dict], ...] = (average, wise_ft, task_arithmetic, ties, dare, slerp, emr)
FUNCTIONS = {rule.__name__: rule for rule in RULES}
