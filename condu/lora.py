"""LoRA on the MLPs of a CLIP: out + x A B / sqrt(r) (Hu et al., arXiv 2106.09685; rank-stabilised, 2312.03732).

As in ConDU (arXiv 2503.10705): the linear layers of the MLP in every block of both towers, no dropout, no
alpha. A (in, r) is the same for every task, B (r, out) starts at zero, so training starts at exactly CLIP.
"""

import math
from collections.abc import Callable, Mapping
from hashlib import blake2b

import torch
from torch import Tensor, nn

from dassl.clip import ClipBackbone
from dassl.utils import UserError

A, B = ".lora_a", ".lora_b"  # what follows a layer's name in the names of its two factors


def mlp_layers(clip: ClipBackbone) -> dict[str, nn.Linear]:
    """{name in clip.module: layer} of the linear layers in the MLPs of both towers, image tower first.

    c_fc and c_proj in OpenAI's layout, fc1 and fc2 in timm's. UserError where a tower has no such block.
    """
    names = {id(module): name for name, module in clip.module.named_modules()}
    named = {}
    for tower, blocks in (("image", clip.image_blocks), ("text", clip.text_blocks)):
        mlps = [getattr(block.module, "mlp", None) for block in blocks]
        layers = [m for mlp in mlps if mlp is not None for m in mlp.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise UserError(
                f"{clip.name}: its {tower} tower has no transformer blocks with an MLP for LoRA; "
                "TRAINER.CONDU.SPACE full trains every CLIP"
            )
        named |= {names[id(layer)]: layer for layer in layers}
    return named


def first_factor(name: str, width: int, rank: int) -> Tensor:
    """A (width, rank) at the start of every task: uniform in +-1 / sqrt(width), drawn from the layer's name alone.

    The bounds are those of LoRA's own code: kaiming_uniform with a = sqrt(5).
    """
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
    bound = 1 / math.sqrt(width)
    return torch.empty(width, rank).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))


class Lora(nn.Module):
    """The factors of all layers, and the hooks that add them to the layers' outputs.

    Its parameters are what trains. `release` takes the hooks away; the layers are then as they were.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], rank: int):
        super().__init__()
        self.layers, self.scale = list(layers), 1 / math.sqrt(rank)
        starts = (first_factor(name, layer.in_features, rank).to(layer.weight) for name, layer in layers.items())
        self.a = nn.ParameterList(starts)
        self.b = nn.ParameterList(torch.zeros(rank, layer.out_features).to(layer.weight) for layer in layers.values())
        factors = zip(layers.values(), self.a, self.b, strict=True)
        self._hooks = [layer.register_forward_hook(self._added(a, b)) for layer, a, b in factors]

    def _added(self, a: Tensor, b: Tensor) -> Callable:
        return lambda layer, inputs, output: output + inputs[0] @ a @ b * self.scale

    def release(self) -> None:
        """Take the hooks away."""
        while self._hooks:
            self._hooks.pop().remove()

    def factors(self) -> dict[str, Tensor]:
        """{layer + A: (in, r), layer + B: (r, out)}: the parameters themselves."""
        pairs = zip(self.layers, self.a, self.b, strict=True)
        return {key: tensor for name, a, b in pairs for key, tensor in ((name + A, a), (name + B, b))}


def update(a: Tensor, b: Tensor) -> Tensor:
    """A (in, r), B (r, out) -> (out, in): what to add to a linear layer's weight for the same outputs."""
    return (a @ b).t() / math.sqrt(a.shape[1])
