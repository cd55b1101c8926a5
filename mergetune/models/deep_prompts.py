"""Deep prompts (IVLP, in Khattak et al., arXiv 2307.06948): learned tokens in the blocks of a frozen CLIP's towers.

Text: the N contexts stand at the first N positions of the text; before block j = 1 .. depth - 1 the hidden
states there give way to that block's own N vectors. Image: n vectors join the tokens behind the patches, after
the positions and before the first layer norm; before block j they give way to block j's own. They are hooks,
in place only while one call of their owner runs, for the towers are shared.

Letters: B images, C classes, D joint width, L tokens, N text and n image vectors, V and W widths of the towers.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dassl.clip import Block, ClipBackbone, positionwise
from dassl.utils import UserError
from mergetune.models.prompts import PromptLearner


class ImagePrompts(nn.Module):
    """`VPT` (n, V) and, for each further block j, `transformer.resblocks.j.VPT_shallow` (n, V)."""

    def __init__(self, backbone: ClipBackbone, count: int, depth: int):
        super().__init__()
        self.backbone = backbone
        self.blocks = blocks_for("Prompts", backbone, "image", depth)
        trunk = getattr(backbone.module.visual, "trunk", None)
        if getattr(trunk, "rope", None) is not None:
            raise UserError(f"{backbone.name}: its image tower rotates every token by its place, prompts have none")
        self.count = count
        self.VPT = _vectors(count, self.blocks[0].width)
        self.transformer = _deep_vectors(count, depth, self.blocks[0].width)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), not normalised; the tower reads its output off its own tokens."""
        first, last = self.blocks[0], self.blocks[-1]
        norm = _first_norm(self.backbone)
        place = (norm, True) if norm else (first.module, first.batch_first)
        handles = [_before(*place, self._appended), *_before_blocks(self)]
        axis = 1 if last.batch_first else 0
        cut = last.module.register_forward_hook(lambda *call: call[2].narrow(axis, 0, call[2].shape[axis] - self.count))
        with hooked([*handles, cut]):
            return self.backbone.encode_image(images)

    def _appended(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens, _rows(self.VPT, tokens)], dim=1)

    def _replaced(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        return torch.cat([tokens[:, : -self.count], _rows(vectors, tokens)], dim=1)


class TextPrompts(nn.Module):
    """`transformer.resblocks.j.VPT_shallow` (N, W) for j = 1 .. depth - 1; block 0 reads the embeddings."""

    def __init__(self, backbone: ClipBackbone, count: int, depth: int):
        super().__init__()
        self.backbone = backbone
        self.blocks = blocks_for("Prompts", backbone, "text", depth)
        self.places = slice(backbone.start_tokens, backbone.start_tokens + count)
        self.transformer = _deep_vectors(count, depth, self.blocks[0].width)

    def encode(self, embeddings: Tensor, tokens: Tensor, shared: int = 0) -> Tensor:
        """(C, L, W) embeddings of tokens (C, L), contexts first -> (C, D), raw. shared: as the backbone's."""
        with hooked(_before_blocks(self)):
            return self.backbone.encode_text_from_embeddings(embeddings, tokens, shared)

    def _replaced(self, states: Tensor, vectors: Tensor) -> Tensor:
        before, behind = states[:, : self.places.start], states[:, self.places.stop :]
        return torch.cat([before, _rows(vectors, states), behind], dim=1)


class DeepPromptedClip(nn.Module):
    """IVLP: prompts in both towers. Keys: `prompt_learner.ctx`, and those of the towers' prompts below
    `image_encoder.` and `text_encoder.`."""

    def __init__(
        self,
        backbone: ClipBackbone,
        classnames: list[str],
        *,
        n_image: int,
        n_text: int,
        image_depth: int,
        text_depth: int,
        words: str = "",
    ):
        super().__init__()
        self.image_encoder = ImagePrompts(backbone, n_image, image_depth)
        self.prompt_learner = PromptLearner(backbone, classnames, n_ctx=n_text, words=words)
        self.text_encoder = TextPrompts(backbone, self.prompt_learner.n_ctx, text_depth)
        self.to(backbone.device)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), not normalised."""
        return self.image_encoder.encode(images)

    def encode_classes(self) -> Tensor:
        """Raw class vectors (C, D)."""
        learner = self.prompt_learner
        return self.text_encoder.encode(learner(), learner.tokens, learner.shared)


def blocks_for(what: str, backbone: ClipBackbone, tower: str, last: int) -> list[Block]:
    """The blocks of a tower, `last` or more, for `what` is put into them. UserError: it has none, or too few."""
    blocks = backbone.image_blocks if tower == "image" else backbone.text_blocks
    if len(blocks) < last:
        there = f"{len(blocks)} blocks" if blocks else "no transformer blocks, as a ViT and CLIP's own text tower have"
        raise UserError(f"{what} in blocks up to {last}, but the {tower} tower of {backbone.name} has {there}")
    return blocks


def prompt_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """n_image, n_text, image_depth, text_depth of a state dict with IVLP's keys."""

    def depth(tower: str) -> int:
        return 1 + sum(key.startswith(f"{tower}.transformer") and key.endswith("VPT_shallow") for key in state)

    return {
        "n_image": len(state["image_encoder.VPT"]),
        "n_text": len(state["prompt_learner.ctx"]),
        "image_depth": depth("image_encoder"),
        "text_depth": depth("text_encoder"),
    }


# In the files of PromptSRC, IVLP, MaPLe and PromptKD the prompts lie among all of CLIP's own weights
_CLIPS_OWN = re.compile(r"(image_encoder|text_encoder|prompt_learner\.ZS_image_encoder)\.|logit_scale$")
_MAPLE = re.compile(r"prompt_learner\.compound_prompts_text\.(\d+)$")


def keep_prompts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop CLIP's own weights from a state dict, in place, and give MaPLe's prompts IVLP's names; returns it."""
    if "prompt_learner.proj.weight" in state:
        _from_maple(state)
    for key in list(state):
        if _CLIPS_OWN.match(key) and "VPT" not in key:
            del state[key]
    return state


def _from_maple(state: dict[str, Tensor]) -> None:
    """MaPLe (arXiv 2210.03117) makes the image prompts from the text's by linear maps: what they give is IVLP."""

    def image(text: Tensor, layer: str) -> Tensor:
        weight, bias = (state.pop(f"prompt_learner.{layer}.{part}") for part in ("weight", "bias"))
        return text.float() @ weight.float().T + bias.float()

    try:
        state["image_encoder.VPT"] = image(state["prompt_learner.ctx"], "proj")
        for key in [key for key in state if _MAPLE.match(key)]:
            k, text = int(_MAPLE.match(key)[1]), state.pop(key)
            name = f"transformer.resblocks.{k + 1}.VPT_shallow"
            state[f"text_encoder.{name}"] = text
            state[f"image_encoder.{name}"] = image(text, f"compound_prompt_projections.{k}")
    except KeyError as error:
        raise UserError(f"a MaPLe checkpoint without {error}") from error


def _vectors(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(count, width))


def _deep_vectors(count: int, depth: int, width: int) -> nn.Module:
    """Blocks 1 .. depth - 1 under the names that they have in CLIP's towers."""
    holder = nn.Module()
    holder.resblocks = nn.ModuleDict({str(j): nn.Module() for j in range(1, depth)})
    for block in holder.resblocks.values():
        block.VPT_shallow = _vectors(count, width)
    return holder


def _first_norm(backbone: ClipBackbone) -> nn.Module | None:
    """The module between the image tower's positions and its first block; it sees (B, tokens, V)."""
    visual = backbone.module.visual
    return getattr(visual, "ln_pre", getattr(getattr(visual, "trunk", None), "norm_pre", None))


def _rows(vectors: Tensor, tokens: Tensor) -> Tensor:
    """(n, V) for every row of tokens (B, L, V), in its type."""
    return vectors.to(tokens.dtype).expand(len(tokens), -1, -1)


def _before(module: nn.Module, batch_first: bool, change: Callable, *vectors: Tensor, places: slice | None = None):
    """Hook: `change((B, L, V), *vectors)` of what the module is given; of `places` alone, if they are named."""

    def hook(_module, inputs):
        tokens, *others = inputs
        changed = change(tokens if batch_first else tokens.transpose(0, 1), *vectors)
        return (changed if batch_first else changed.transpose(0, 1), *others)

    return module.register_forward_pre_hook(positionwise(hook, places) if places else hook)


def _before_blocks(prompts: ImagePrompts | TextPrompts) -> list:
    """In each further block its own vectors stand for those of the block before."""
    pairs = ((prompts.blocks[int(j)], node.VPT_shallow) for j, node in prompts.transformer.resblocks.items())
    places = getattr(prompts, "places", None)
    return [_before(b.module, b.batch_first, prompts._replaced, vectors, places=places) for b, vectors in pairs]


@contextmanager
def hooked(handles: list) -> Iterator[None]:
    """The hooks go when the call is over, also when it failed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
