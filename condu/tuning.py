"""What a delta is a delta of: all weights of CLIP, the factors of LoRA, or what the factors add to the weights.

Fusing needs vectors of one length and meaning for all tasks (ConDU, arXiv 2503.10705); where those live is a
choice. A `Space` trains an expert, gives its delta, and writes the CLIP of a delta into the weights of a copy.
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
    """Base class; here the delta's names are names of weights.

    Attributes: kind; trained (the module whose parameters with requires_grad train); pretrained {name: weight}.
    """

    kind = ""
    trained: nn.Module

    def __init__(self, pretrained: State):
        self.pretrained = {name: value.detach() for name, value in pretrained.items()}

    def metadata(self) -> dict:
        """What two deltas must have in common to be fused, JSON-ready."""
        return {"kind": self.kind}

    def delta(self) -> dict[str, Tensor]:
        """The expert minus the pretrained weights, in fp32, on the expert's device."""
        raise NotImplementedError

    def start_from(self, delta: State) -> None:
        """Let training start from this expert instead of the pretrained weights."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the CLIP that trained back as a plain one, to be filled."""

    @torch.no_grad()
    def fill(self, delta: State | None, parameters: Mapping[str, Tensor]) -> None:
        """Write the expert of `delta`, or the pretrained weights, into the parameters of a CLIP, in place.

        parameters: all of them, by their names in the CLIP. UserError if the delta has other names or shapes.
        """
        delta = delta or {}
        if delta:
            self.check(delta)
        self._pretrain(parameters, delta)
        for name, value in delta.items():
            torch.add(self.pretrained[name], value.to(parameters[name].device), out=parameters[name].data)

    @torch.no_grad()
    def fill_task(self, fusion: Fusion, task: str, parameters: Mapping[str, Tensor]) -> None:
        """`fill` with a task's decoupled delta, without building it."""
        self._pretrain(parameters, fusion.shapes)
        fusion.add_to(task, self.pretrained, parameters)

    def _pretrain(self, parameters: Mapping[str, Tensor], leave: Mapping) -> None:
        """Pretrained values, but for the names in `leave`: those are overwritten anyway."""
        for name, value in self.pretrained.items():
            if name not in leave:
                parameters[name].data.copy_(value)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """{name: shape} of a delta."""
        return {name: value.shape for name, value in self.pretrained.items() if name not in UNTRAINED}

    def check(self, delta: State) -> None:
        """UserError unless the names and shapes of a delta are of this space."""
        shapes = self.shapes
        strange = sorted(delta.keys() ^ shapes.keys())
        wrong = [name for name in delta if name in shapes and delta[name].shape != shapes[name]]
        if strange or wrong:
            named = ", ".join([*strange, *wrong][:3])
            raise UserError(
                f"this delta is none of the space {self.kind} on this CLIP: {len(strange)} names and {len(wrong)} "
                f"shapes do not fit ({named})"
            )


class FullSpace(Tuning):
    """Both towers whole."""

    kind = "full"

    def __init__(self, clip: ClipBackbone, pretrained: State):
        super().__init__(pretrained)
        self.trained = clip.module
        for name, parameter in clip.module.named_parameters():
            parameter.requires_grad_(name not in UNTRAINED)

    def delta(self) -> dict[str, Tensor]:
        trained = {name: p.detach() for name, p in self.trained.named_parameters() if name not in UNTRAINED}
        return {name: value.float() - self.pretrained[name].float() for name, value in trained.items()}

    def start_from(self, delta: State) -> None:
        self.fill(delta, dict(self.trained.named_parameters()))


class LoraSpace(Tuning):
    """Base class of both spaces of LoRA."""

    def __init__(self, clip: ClipBackbone, pretrained: State, rank: int):
        super().__init__(pretrained)
        clip.freeze()
        self.clip, self.rank = clip, rank
        self.trained = Lora(mlp_layers(clip), rank)
        self.start = {name: value.detach().clone() for name, value in self.trained.factors().items()}

    def metadata(self) -> dict:
        return super().metadata() | {"rank": self.rank, "layers": len(self.trained.layers)}

    def release(self) -> None:
        self.trained.release()


class LoraFactors(LoraSpace):
    """The delta is that of the factors, each by itself."""

    kind = "lora_factors"

    def delta(self) -> dict[str, Tensor]:
        now = self.trained.factors()
        return {name: now[name].detach() - start for name, start in self.start.items()}

    @torch.no_grad()
    def start_from(self, delta: State) -> None:
        self.check(delta)
        for name, factor in self.trained.factors().items():
            factor.copy_(self.start[name] + delta[name].to(factor))

    @torch.no_grad()
    def fill(self, delta: State | None, parameters: Mapping[str, Tensor]) -> None:
        weights = [f"{layer}.weight" for layer in self.trained.layers]
        self._pretrain(parameters, weights if delta else ())
        if not delta:
            return
        self.check(delta)
        for layer, weight in zip(self.trained.layers, weights, strict=True):
            a, b = (self.start[layer + end] + delta[layer + end].to(self.start[layer + end]) for end in (A, B))
            torch.add(self.pretrained[weight], update(a, b), out=parameters[weight].data)

    def fill_task(self, fusion: Fusion, task: str, parameters: Mapping[str, Tensor]) -> None:
        self.fill(fusion.decouple(task), parameters)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in self.start.items()}


class LoraProduct(LoraSpace):
    """The delta is what the factors add to the layers' weights, so it takes as much room as these weights."""

    kind = "lora_product"
    _before: State = {}  # the delta that the weights below the factors hold

    @torch.no_grad()
    def delta(self) -> dict[str, Tensor]:
        now = self.trained.factors()
        added = {f"{layer}.weight": update(now[layer + A], now[layer + B]) for layer in self.trained.layers}
        return {name: value + self._before[name] if self._before else value for name, value in added.items()}

    def start_from(self, delta: State) -> None:
        """The delta goes into the frozen weights, and the factors start anew: a product has no factors of its node."""
        self.fill(delta, dict(self.clip.module.named_parameters()))
        self._before = {name: value.to(self.clip.device) for name, value in delta.items()}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {f"{layer}.weight": self.pretrained[f"{layer}.weight"].shape for layer in self.trained.layers}


def build_space(cfg: CN, clip: ClipBackbone, pretrained: State) -> Tuning:
    """The space of TRAINER.CONDU on `clip`, an own copy that will train; pretrained: the shared one's weights.

    UserError: LoRA on a CLIP without transformer blocks.
    """
    node = cfg.TRAINER.CONDU
    if node.SPACE == "full":
        return FullSpace(clip, pretrained)
    kind = {"factors": LoraFactors, "product": LoraProduct}[node.MERGE_SPACE]
    return kind(clip, pretrained, node.RANK)


__getattr__ = old_names(__name__)
