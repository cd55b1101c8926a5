"""Other CLIPs as open_clip builds them: OpenAI's, LAION's, EVA, DFN, SigLIP, SigLIP 2, CoCa, ...

The seam over a built model and its tokeniser; `hub` finds, downloads and loads them.
Letters: C texts, L tokens, D joint width, W width of the text tower.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dassl.utils import UserError

from .backbone import Block, ClipBackbone

# timm's blocks that normalise first, as the seam's Block says; post-norm and parallel ones do not
TIMM_BLOCKS = ("Block", "EvaBlock", "RelPosBlock")


class OpenClip(ClipBackbone):
    """A model of open_clip with its tokeniser.

    Towers that attend to both sides (SigLIP), pool the last position or append a class token (CoCa) are not
    `causal` in the sense of the seam: texts keep their full length.
    """

    def __init__(self, module: Any, tokenizer: Any, **facts):
        self.tokenizer = tokenizer
        tower = getattr(module, "text", module)
        self.pooling = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", "")
        self.causal = (
            getattr(tower, "attn_mask", None) is not None
            and self.pooling in ("argmax", "eos")
            and getattr(tower, "cls_emb", None) is None
        )
        super().__init__(module, **facts)
        empty, word = self._raw_tokens(["", "a"])
        self.start_tokens = int((empty == word).int().cumprod(0).sum())  # SigLIP has none
        self._closing = int(empty[-1] != empty[-2])  # CLIPS writes a class token behind the padding
        self._padding = int(empty[-2])
        self._specials = int(self._unpadded(empty[None]))  # start and end token

    @property
    def text_tower(self) -> Any:
        return getattr(self.module, "text", self.module)

    @property
    def dim(self) -> int:
        projection = self.text_tower.text_projection
        if projection is None:
            return self.width
        return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @property
    def context_length(self) -> int:
        return self.text_tower.context_length

    @property
    def dtype(self) -> torch.dtype:
        return self.text_tower.transformer.get_cast_dtype()

    @property
    def image_blocks(self) -> list[Block]:
        visual = self.module.visual
        if hasattr(visual, "transformer"):
            return super().image_blocks
        blocks = getattr(getattr(visual, "trunk", None), "blocks", None)  # timm
        if blocks is None or not all(type(block).__name__ in TIMM_BLOCKS for block in blocks):
            return []
        return [Block(block, block.norm1, block.norm1.normalized_shape[0], True) for block in blocks]

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.pooling == "argmax":
            return super().lengths(tokens)
        if self.pooling == "eos":
            end = getattr(self.text_tower, "eos_id", None) or self.text_tower.text_eos_id
            return (tokens == end).int().argmax(dim=-1) + 1
        return self._unpadded(tokens)

    def token_counts(self, texts: list[str]) -> list[int]:
        return (self._unpadded(self.tokenize(texts)) - self._specials).tolist()

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = self._raw_tokens(texts)
        # open_clip cuts long texts without a word; with two positions more the excess shows
        length = self.context_length
        longer, kept = self._raw_tokens(texts, length + 2), length - self._closing
        cut = (self._unpadded(longer) > length) | (longer[:, :kept] != tokens[:, :kept]).any(dim=-1)
        if cut.any():
            text = texts[int(cut.int().argmax())]
            raise UserError(f'"{text}" is too long for the {length} tokens of {self.name}')
        return tokens.to(self.device)

    def _unpadded(self, tokens):
        """(C, L) -> (C,) positions up to the last one that is no padding."""
        tokens = tokens[:, : tokens.shape[1] - self._closing]
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return (places * (tokens != self._padding)).amax(dim=-1)

    def _raw_tokens(self, texts, length=None):
        return self.tokenizer(texts, context_length=length or self.context_length).long()


class OpenClipForeignText(OpenClip):
    """A model of open_clip whose text tower has no token embedding of its own: a Hugging Face model.

    Texts are encoded from tokens only, so `no_embeddings` says why prompts cannot be learned.
    """

    def __init__(self, module: Any, tokenizer: Any, **facts):
        super().__init__(module, tokenizer, **facts)
        kind = getattr(getattr(module.text, "config", None), "model_type", type(module.text).__name__)
        self.no_embeddings = f"its text tower is a Hugging Face model ({kind}), which takes tokens, not embeddings"

    @property
    def dim(self) -> int:
        return self.text_tower.output_dim

    @property
    def context_length(self) -> int:
        return self.tokenizer.context_length

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.visual.parameters()).dtype

    @property
    def text_blocks(self) -> list[Block]:
        return []
