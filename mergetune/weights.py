"""The trainable weights of a module as a solution: read them, and run the module at others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from dassl.utils.moved import old_names


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by their state-dict names."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


@contextmanager
def swapped_parameters(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run `module` with these tensors in the place of its parameters; gradients reach the tensors.

    Written past nn.Module's own setter, which takes no tensor with a history for a parameter.
    Raises KeyError for a name the module lacks, ValueError for another shape; nothing is lent then.
    """
    slots = []
    for name, value in weights.items():
        owner_name, _, leaf = name.rpartition(".")
        slot = module.get_submodule(owner_name)._parameters
        if slot[leaf].shape != value.shape:
            raise ValueError(f"{name} is {tuple(slot[leaf].shape)}, given {tuple(value.shape)}")
        slots.append((slot, leaf, slot[leaf], value))
    try:
        for slot, leaf, _, value in slots:
            slot[leaf] = value
        yield
    finally:
        for slot, leaf, own, _ in slots:
            slot[leaf] = own


__getattr__ = old_names(__name__)
