"""Activations that the backward pass computes again, in place of keeping them (Chen et al., arXiv 1604.06174).

Methods change a tower for the length of a call: hooks, weights on a path between two solutions, cut positions.
When the backward pass comes all that is gone, so whatever runs again runs on the modules as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable, modules: Sequence[nn.Module], *inputs):
    """`function(*inputs)` -> a tensor; its activations are dropped, and made again when gradients need them.

    modules: all that it runs through, each once. Random numbers are drawn again as they were.
    """
    states = [_state(module) for module in modules]
    lent = [(table, name, value) for _, state in states for table, name, value in _lent(state)]
    for table, name, _ in lent:
        table[name] = None  # handed over below: an outer `recomputed` drops its tensors as it drops others
    slots, made = [(table, name) for table, name, _ in lent], False

    def run(*tensors):
        nonlocal made
        own = tensors[len(slots) :]
        if not made:
            made = True
            return function(*own)
        for (table, name), value in zip(slots, tensors, strict=False):
            table[name] = value
        try:
            with _as_then(states):
                return function(*own)
        finally:
            for table, name in slots:
                table[name] = None

    draws = any(module.training for module in modules)  # frozen towers draw nothing, and states cost time
    return checkpoint(
        run, *(value for *_, value in lent), *inputs, use_reentrant=False, preserve_rng_state=draws
    )  # fmt: skip


@contextmanager
def recomputed_blocks(blocks: Sequence[nn.Module], attached: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, each block's forward pass is `recomputed` on its own; hooks on the block itself run around that.

    attached: modules that hooks inside the blocks run through.
    """
    before = [(vars(block), vars(block).get("forward")) for block in blocks]
    for block in blocks:
        vars(block)["forward"] = partial(_forward, block.forward, [*block.modules(), *attached])
    try:
        yield
    finally:
        for attributes, own in before:
            del attributes["forward"]
            attributes |= {} if own is None else {"forward": own}


def _forward(forward: Callable, modules: list[nn.Module], *inputs, **options):
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return recomputed(partial(forward, **options), modules, *inputs)


def _state(module: nn.Module) -> tuple[nn.Module, dict]:
    """Its attributes; the tables of parameters, buffers, hooks copied."""
    return module, {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def _lent(state: dict) -> list[tuple[dict, str, Tensor]]:
    """(table, name, value) of what stands in a parameter's place and has a history."""
    table = state["_parameters"]
    return [(table, name, value) for name, value in table.items() if value is not None and not value.is_leaf]


@contextmanager
def _as_then(states: list[tuple[nn.Module, dict]]) -> Iterator[None]:
    """The modules have the attributes of their states; afterwards their own again, the same objects."""
    now = [(vars(module), dict(vars(module))) for module, _ in states]
    for module, state in states:
        # copies: the state may be needed once more
        vars(module).update({name: value.copy() if isinstance(value, dict) else value for name, value in state.items()})
    try:
        yield
    finally:
        for attributes, own in now:
            attributes.clear()
            attributes.update(own)
