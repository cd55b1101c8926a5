"""MMA's adapters beside a frozen CLIP's blocks (Yang et al., "MMA: Multi-Modal Adapter", CVPR 2024).

    block(x) + scale * up(shared(relu(down(norm(x)))))        norm: the block's own first one

`down` and `up` belong to one tower, `shared` (a linear layer and a ReLU) to both. They attach to CLIP by
hooks, for the length of a call: CLIP itself stays as it is.
Letters: W width of a tower, R adapter width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dassl.clip import Block, ClipBackbone, positionwise
from dassl.utils import UserError
from mergetune.models.deep_prompts import blocks_for, hooked


class Scale(torch.autograd.Function):
    """Times `forward_by` on the way in, the gradient times `backward_by` on the way out."""

    @staticmethod
    def forward(ctx, x: Tensor, forward_by: float, backward_by: float) -> Tensor:
        ctx.backward_by = backward_by
        return x.view_as(x) if forward_by == 1 else x * forward_by

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient if ctx.backward_by == 1 else gradient * ctx.backward_by), None, None


class Adapter(nn.Module):
    """One tower's layers beside one block: W -> R and R -> W."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.down = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
        self.up = nn.Linear(dim, width)


class MultiModalAdapters(nn.Module):
    """Adapters beside blocks first .. last (counted from 1) of both towers of `backbone`.

    dim: R. scale: of the branch; training does not feel it, for the weights get the gradient they would have
    at scale 1, while what lies below gets the true one (`Scale` at the branch's two ends).
    Weights start Kaiming normal (fan out), biases at 0. State-dict keys are those of the authors' files.
    UserError: a tower without blocks, or with fewer than asked for.
    """

    def __init__(self, backbone: ClipBackbone, *, first: int, last: int, dim: int, scale: float):
        super().__init__()
        if not 1 <= first <= last:
            raise UserError(f"Adapters in blocks {first} to {last}, expected 1 <= ADAPTER_START <= ADAPTER_END")
        self.numbers, self.scale = range(first, last + 1), scale
        self.text_adapter = self._beside(blocks_for("Adapters", backbone, "text", last), dim)
        self.visual_adapter = self._beside(blocks_for("Adapters", backbone, "image", last), dim)
        self.shared_adapter = nn.ModuleDict(
            {str(i): nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for i in self.numbers}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def _beside(self, blocks: list[Block], dim: int) -> nn.ModuleDict:
        return nn.ModuleDict({str(i): Adapter(blocks[i - 1].width, dim) for i in self.numbers})

    def branch(self, adapter: Adapter, shared: nn.Module, x: Tensor) -> Tensor:
        """What is added to a block's output; x (..., W) is the output of the block's first norm.

        In the weights' own precision, unless autocast is on: a half-precision tower meets full weights here.
        """
        inner = Scale.apply(x.to(adapter.up.weight.dtype), 1.0, self.scale)
        return Scale.apply(adapter.up(shared(adapter.down(inner))).to(x.dtype), self.scale, 1.0)

    @contextmanager
    def attached(self, backbone: ClipBackbone) -> Iterator[None]:
        """Inside, the backbone's towers have the adapters; removed on exit, also after an error."""
        towers = (backbone.text_blocks, self.text_adapter), (backbone.image_blocks, self.visual_adapter)
        handles = []
        for blocks, adapters in towers:
            for i in self.numbers:
                handles += self._hook(blocks[i - 1], adapters[str(i)], self.shared_adapter[str(i)])
        with hooked(handles), backbone.attached_modules(self):
            yield

    def _hook(self, block: Block, adapter: Adapter, shared: nn.Module) -> list:
        """The block runs its norm once: one hook catches what it gives, the other adds the branch."""
        normed = []

        def keep(_module, _inputs, output: Tensor) -> None:
            normed[:] = [output]

        def add(_module, _inputs, output: Tensor) -> Tensor:
            return output + self.branch(adapter, shared, normed.pop()).to(output.dtype)

        return [
            block.norm.register_forward_hook(positionwise(keep)),
            block.module.register_forward_hook(positionwise(add)),
        ]

    def at_zero(self) -> dict[str, Tensor]:
        """Copies of the weights, the up-projections at 0: there the towers are exactly CLIP's."""
        return {
            name: torch.zeros_like(value) if ".up." in name else value.detach().clone()
            for name, value in self.named_parameters()
        }
