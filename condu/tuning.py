"""What a delta is a delta of: all weights of CLIP, the factors of LoRA, or what the factors add to the weights.

Fusing needs vectors of one length and meaning for all tasks (ConDU, arXiv 2503.10705); where those live is a
choice. A `Tuning` trains an expert, gives its delta, and writes the CLIP of a delta into the weights of a copy.
Every delta is taken from the pretrained weights, whatever training started from.

kind           delta                                            trained
full           {name: shape of the weight}, both towers         every weight but the logit scale
lora_factors   {layer.lora_a: (in, r), layer.lora_b: (r, out)}  the factors
lora_product   {layer.weight: (out, in)}                        the factors
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.clip import ClipBackbone
from dassl.utils import UserError
from dassl.utils.moved import old_names

from .fusion import Fusion
from .lora import A, B, Lora, mlp_layers, update

SPACES = ("full", "lora")
MERGE_SPACES = ("factors", "product")
UNTRAINED = ("logit_scale", "logit_bias")  # they belong to the loss, which all tasks share

State = Mapping[str, Tensor]


class Tuning:
    """Both towers whole; the delta's names are names of weights.

    Attributes: kind; trained (the module whose parameters with requires_grad train); pretrained {name: weight}; shapes
    {name: shape} of a delta.
    """

    kind = "full"

    def __init__(self, clip: ClipBackbone, pretrained: State):
        self.pretrained = {name: value.detach() for name, value in pretrained.items()}
        self.shapes = {name: value.shape for name, value in self.pretrained.items() if name not in UNTRAINED}
        self.trained: nn.Module = clip.module
        for name, parameter in clip.module.named_parameters():
            parameter.requires_grad_(name not in UNTRAINED)

    def metadata(self) -> dict:
        """What two deltas must have in common to be fused, JSON-ready."""
        return {"kind": self.kind}

    def delta(self) -> dict[str, Tensor]:
        """The expert minus the pretrained weights, in fp32, on the expert's device."""
        trained = {name: p.detach() for name, p in self.trained.named_parameters() if name not in UNTRAINED}
        return {name: value.float() - self.pretrained[name].float() for name, value in trained.items()}

    def start_from(self, delta: State) -> None:
        """Let training start from this expert instead of the pretrained weights."""
        self.fill(delta, dict(self.trained.named_parameters()))

    def release(self) -> None:
        """Give the CLIP that trained back as a plain one, to be filled."""

    def added(self, delta: State) -> State:
        """What a delta adds to the pretrained weights."""
        return delta

    @torch.no_grad()
    def fill(self, delta: State | None, parameters: Mapping[str, Tensor]) -> None:
        """Write the expert of `delta`, or the pretrained weights, into the parameters of a CLIP, in place.

        parameters: all of them, by their names in the CLIP. UserError if the delta has other names or shapes.
        """
        if delta:
            self.check(delta)
        added = self.added(delta) if delta else {}
        for name, value in self.pretrained.items():
            if name in added:
                torch.add(value, added[name].to(parameters[name].device), out=parameters[name].data)
            else:
                parameters[name].data.copy_(value)

    @torch.no_grad()
    def fill_task(self, fusion: Fusion, task: str, parameters: Mapping[str, Tensor]) -> None:
        """`fill` with a task's decoupled delta, without building it."""
        for name in self.pretrained.keys() - fusion.shapes.keys():
            parameters[name].data.copy_(self.pretrained[name])
        fusion.add_to(task, self.pretrained, parameters)

    def check(self, delta: State) -> None:
        """UserError unless the names and shapes of a delta are of this space."""
        shapes = {name: value.shape for name, value in delta.items()}
        if wrong := [n for n in sorted(shapes.keys() | self.shapes.keys()) if shapes.get(n) != self.shapes.get(n)]:
            raise UserError(
                f"this delta is none of the space {self.kind} on this CLIP: {len(wrong)} names or shapes do not fit "
                f"({', '.join(wrong[:3])})"
            )


class LoraProduct(Tuning):
    """LoRA; the delta is what the factors add to the layers' weights, so it takes as much room as these weights."""

    kind = "lora_product"
    _before: State = {}  # the delta that the weights below the factors hold

    def __init__(self, clip: ClipBackbone, pretrained: State, rank: int):
        super().__init__(clip, pretrained)
        clip.freeze()
        self.clip, self.rank = clip, rank
        self.trained: Lora = Lora(mlp_layers(clip), rank)
        self.shapes = {f"{name}.weight": self.pretrained[f"{name}.weight"].shape for name in self.trained.layers}

    def metadata(self) -> dict:
        return super().metadata() | {"rank": self.rank, "layers": len(self.trained.layers)}

    def release(self) -> None:
        self.trained.release()

    def product(self, factors: State) -> dict[str, Tensor]:
        """What factors add to the weights of their layers."""
        return {f"{layer}.weight": update(factors[layer + A], factors[layer + B]) for layer in self.trained.layers}

    @torch.no_grad()
    def delta(self) -> dict[str, Tensor]:
        product = self.product(self.trained.factors())
        return {name: value + self._before[name] if self._before else value for name, value in product.items()}

    def start_from(self, delta: State) -> None:
        """The delta goes into the frozen weights, and the factors start anew: a product has no factors of its own."""
        self.fill(delta, dict(self.clip.module.named_parameters()))
        self._before = {name: value.to(self.clip.device) for name, value in delta.items()}


class LoraFactors(LoraProduct):
    """LoRA; the delta is that of the factors, each by itself."""

    kind = "lora_factors"

    def __init__(self, clip: ClipBackbone, pretrained: State, rank: int):
        super().__init__(clip, pretrained, rank)
        self.start = {name: value.detach().clone() for name, value in self.trained.factors().items()}
        self.shapes = {name: value.shape for name, value in self.start.items()}

    def delta(self) -> dict[str, Tensor]:
        now = self.trained.factors()
        return {name: now[name].detach() - start for name, start in self.start.items()}

    @torch.no_grad()
    def start_from(self, delta: State) -> None:
        self.check(delta)
        for name, factor in self.trained.factors().items():
            factor.copy_(self.start[name] + delta[name].to(factor))

    def added(self, delta: State) -> State:
        return self.product({name: start + delta[name].to(start) for name, start in self.start.items()})

    def fill_task(self, fusion: Fusion, task: str, parameters: Mapping[str, Tensor]) -> None:
        self.fill(fusion.decouple(task), parameters)


def build_space(cfg: CN, clip: ClipBackbone, pretrained: State) -> Tuning:
    """The space of TRAINER.CONDU on `clip`, an own copy that will train; pretrained: the shared one's weights.

    UserError: LoRA on a CLIP without transformer blocks.
    """
    node = cfg.TRAINER.CONDU
    if node.SPACE == "full":
        return Tuning(clip, pretrained)
    return {"factors": LoraFactors, "product": LoraProduct}[node.MERGE_SPACE](clip, pretrained, node.RANK)


__getattr__ = old_names(__name__)
