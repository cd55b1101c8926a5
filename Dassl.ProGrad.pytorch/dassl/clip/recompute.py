"""Activations that the backward pass computes again, in place of keeping them (Chen et al., arXiv 1604.06174).

Methods change a tower for the length of a call: hooks, weights on a path between two solutions, cut positions.
When the backward pass comes all that is gone, so whatever runs again runs on the modules as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable, modules: Sequence[nn.Module], *inputs, **options) -> Tensor:
    """`function(*inputs, **options)` -> a tensor; its activations are dropped, and made again when gradients need them.

    modules: all that it runs through, each once. Random numbers are drawn again as they were.
    """
    states = []  # attributes of each module, with copies of its tables of parameters, buffers and hooks
    for attributes in map(vars, modules):
        copies = {name: value.copy() for name, value in attributes.items() if isinstance(value, dict)}
        states.append((attributes, attributes | copies))
    tables = [state["_parameters"] for _, state in states]
    # what stands in a parameter's place and has a history is handed over: an outer `recomputed` drops it as others
    slots = [(table, name) for table in tables for name, value in table.items() if not (value is None or value.is_leaf)]
    lent, made = [table[name] for table, name in slots], False

    def run(*tensors):
        nonlocal made
        replayed, made = states if made else [], True
        for (table, name), value in zip(slots, tensors, strict=False):
            table[name] = value
        try:
            with _as_then(replayed):
                return function(*tensors[len(slots) :], **options)
        finally:
            for table, name in slots:
                table[name] = None

    draws = any(module.training for module in modules)  # frozen towers draw nothing, and states cost time
    return checkpoint(run, *lent, *inputs, use_reentrant=False, preserve_rng_state=draws)


@contextmanager
def recomputed_blocks(blocks: Sequence[nn.Module], attached: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, each block's forward pass is `recomputed` on its own; hooks on the block itself run around that.

    attached: modules that hooks inside the blocks run through.
    """
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = partial(recomputed, block.forward, [*block.modules(), *attached])
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            vars(block)["forward"] = forward
            if forward is None:
                del vars(block)["forward"]


@contextmanager
def _as_then(states: list[tuple[dict, dict]]) -> Iterator[None]:
    """The modules have the attributes of their states; afterwards their own again, the same objects."""
    now = [(attributes, dict(attributes)) for attributes, _ in states]
    for attributes, state in states:
        attributes.update(state)
    try:
        yield
    finally:
        for attributes, before in now:
            attributes.clear()
            attributes.update(before)
