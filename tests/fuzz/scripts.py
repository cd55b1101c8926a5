"""TorchScript programs that do something as soon as they are loaded: `__setstate__` is run by torch.jit.load."""

import torch
from torch import Tensor, nn


class Writer(nn.Module):
    """Saves a tensor as CANARY."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.training = False

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        torch.save(state[0], "canary")


class Endless(nn.Module):
    """Never done."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.training = False

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        i = 0
        while i < 1000000000000:
            i += 1


MODULES = (Writer, Endless)
