"""One interface to any CLIP: what a trainer may ask, and nothing else.

A backend wraps a module that has `encode_image`, `encode_text`, `token_embedding` and `logit_scale`, and
says how to tokenize. The rest is here, on the module's own code: a text is encoded from embeddings by a
hook on `token_embedding`, short texts run short, for a causal tower never reads behind the end token, and what
texts have in common runs once (`text_pass`).

Letters: B images, C texts or classes, L tokens (at most the context length), D joint width, W width of the
text tower.
"""

import contextlib
import copy
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dassl.utils import Registry, UserError
from dassl.utils import tensor_digest as digest_of_tensors
from dassl.utils.moved import OldMethods

from .recompute import recomputed_blocks
from .text_pass import encode_texts

Device = str | torch.device
CLIP_REGISTRY = Registry("CLIP")  # of backends, see `build`
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
tensor_digest = functools.partial(digest_of_tensors, algorithm=hashlib.sha256)  # for weights that are no single file


@dataclass(frozen=True)
class Preprocess:
    """How images were prepared when the weights were trained.

    size: pixels a side; mean, std: per channel, for pixels in [0, 1]; resize: "shortest" (short side, then
    centre crop) or "squash" (both sides at once, as SigLIP).
    """

    size: int
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD
    interpolation: str = "bicubic"
    resize: str = "shortest"


@dataclass(frozen=True)
class Block:
    """A transformer block: module, first norm, width W, and whether it sees (N, L, W) or (L, N, W)."""

    module: nn.Module
    norm: nn.Module
    width: int
    batch_first: bool


class ClipBackbone(OldMethods):
    """One loaded CLIP.

    A backend overrides `tokenize`, and whatever property does not fit its module. Attributes: name, digest (sha256 of
    the weights), module, preprocess, activation ("quickgelu" or "gelu"), causal (the text tower reads to the left
    only), batch_first (its blocks see (N, L, W), where no tower says otherwise), start_tokens (tokens before the text),
    short_text (True: texts are cut behind the longest prompt of the call; False keeps all L positions),
    share_prefix (True: what all texts of a call begin with is computed once, see `shared_prefix`),
    no_embeddings (why the text tower cannot be fed embeddings; "" where it can), text_chunk and
    checkpoint_blocks (see `saving_memory`), compiled (see `compiling`).
    """

    causal = batch_first = True
    start_tokens = 1
    no_embeddings = ""
    share_prefix = True
    text_chunk = 0
    checkpoint_blocks = compiled = False

    def __init__(self, module: Any, *, name: str, digest: str, preprocess: Preprocess, activation: str):
        self.module, self.name, self.digest = module, name, digest
        self.preprocess, self.activation = preprocess, activation
        self.short_text = self.causal
        self._attached: list[nn.Module] = []

    def __str__(self):
        return f"CLIP {self.name}: D {self.dim}, {self.image_size} px, {self.activation}, sha256 {self.digest[:12]}"

    def metadata(self) -> dict:
        """Which CLIP this is, down to its weights; JSON-ready."""
        facts = {name: getattr(self, name) for name in ("name", "digest", "activation")}
        return facts | {"preprocess": asdict(self.preprocess)}

    # what the weights say
    @property
    def text_tower(self) -> Any:
        """The module that holds `token_embedding` and `positional_embedding`."""
        return self.module

    @property
    def dim(self) -> int:
        """D, the joint width."""
        return self.text_tower.text_projection.shape[1]

    @property
    def width(self) -> int:
        """W, the width of token embeddings. UserError where the tower takes none."""
        self.require_embeddings()
        return self.text_tower.token_embedding.weight.shape[1]

    @property
    def context_length(self) -> int:
        """Positions of the text tower, start and end token included."""
        return self.text_tower.positional_embedding.shape[0]

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.preprocess.size

    @property
    def dtype(self) -> torch.dtype:
        """The type the towers compute in."""
        return getattr(self.module, "dtype", None) or next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """The factor of the cosine, exponentiated: a scalar tensor."""
        return self.module.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> torch.Tensor:
        """What is added to scale times cosine before a sigmoid: a scalar tensor, 0 for a softmax-trained CLIP.

        The same number for every pair, so softmax, its cross-entropy and every ranking are the same without
        it, and no trainer adds it. A probability of one pair needs it: sigmoid(scale * cosine + bias), SigLIP
        (Zhai et al., arXiv 2303.15343).
        """
        bias = getattr(self.module, "logit_bias", None)
        return self.module.logit_scale.new_zeros(()) if bias is None else bias.reshape(())

    @property
    def image_blocks(self) -> list[Block]:
        """Blocks of the image tower in order; empty for one that is not made of pre-norm transformer blocks."""
        tower = getattr(self.module.visual, "transformer", None)
        return [] if tower is None else self._blocks(tower)

    @property
    def text_blocks(self) -> list[Block]:
        """Blocks of the text tower in order; empty where it cannot be fed embeddings."""
        return self._blocks(self.text_tower.transformer)

    def _blocks(self, tower):
        """Of a transformer with the names of OpenAI's."""
        batch_first = getattr(tower, "batch_first", self.batch_first)
        return [Block(block, block.ln_1, block.ln_1.normalized_shape[0], batch_first) for block in tower.resblocks]

    # what it does
    def require_embeddings(self, what: str = "learned prompts") -> None:
        """Raises UserError where the text tower cannot be fed embeddings; `what` needs it. Before long work."""
        if self.no_embeddings:
            raise UserError(
                f"{what} cannot run on {self.name}: {self.no_embeddings}. Zero-shot, linear probe and fine-tuning can"
            )

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """list of C strings -> (C, context_length) int64 on the device. UserError names a text too long."""
        raise NotImplementedError

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, L) -> (C,) tokens up to and with the end token, the highest id of a vocabulary."""
        return tokens.argmax(dim=-1) + 1

    def token_counts(self, texts: list[str]) -> list[int]:
        """list of C strings -> list of C numbers of tokens, start and end left out."""
        return (self.lengths(self.tokenize(texts)) - self.start_tokens - 1).tolist()

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, L) -> (C, L') cut behind the longest prompt; as given where that would not be exact."""
        return tokens[:, : int(self.lengths(tokens).max())] if self.short_text else tokens

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(C, L) -> (C, L, W) token embeddings, without positions."""
        self.require_embeddings()
        return self.text_tower.token_embedding(tokens).to(self.dtype)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D), not normalised."""
        with self.recomputing_blocks("image", _modules(self._attached)):
            return self.module.encode_image(images.to(self.dtype))

    def encode_text(self, tokens: torch.Tensor, shared: int | None = 0) -> torch.Tensor:
        """(C, L) -> (C, D), not normalised.

        shared: so many positions, from the first, are the same for all texts; what can be is computed once. None: as
        many as the tokens say, which waits for a GPU when they are first seen.
        """
        return encode_texts(self, tokens, shared=shared, attached=_modules(self._attached))

    def encode_text_from_embeddings(
        self, embeddings: torch.Tensor, tokens: torch.Tensor, shared: int = 0
    ) -> torch.Tensor:
        """(C, L, W) embeddings in place of those of tokens (C, L) -> (C, D), not normalised.

        The tokens say where a prompt ends. Gradients reach the embeddings. shared: so many positions, from the first,
        hold the same for all texts; they are read, and get their gradient, in the first text, and are computed once
        where that can be. UserError where the tower takes none.
        """
        self.require_embeddings()
        if embeddings.shape != (*tokens.shape, self.width):
            raise UserError(
                f"embeddings have shape {tuple(embeddings.shape)}, "
                f"expected {(*tokens.shape, self.width)} for these tokens and {self.name}"
            )
        return encode_texts(self, tokens, embeddings, shared=shared, attached=_modules(self._attached))

    def to(self, device: Device) -> "ClipBackbone":
        """Move the weights; returns self."""
        self.module.to(device)
        return self

    def freeze(self) -> "ClipBackbone":
        """No gradients for the weights, evaluation mode; returns self."""
        self.module.requires_grad_(False).eval()
        return self

    # memory
    def saving_memory(self, text_chunk: int = 0, checkpoint_blocks: bool = False) -> "ClipBackbone":
        """This CLIP, on the same module, with other settings of what passes with gradients keep -> ClipBackbone.

        text_chunk: texts that go through the text tower at once, and are kept until the backward pass, which
        makes their activations again chunk by chunk; 0: all. checkpoint_blocks: each block of either tower keeps
        its input alone, and is run again in the backward pass. Features and gradients are the same.
        """
        if (text_chunk, checkpoint_blocks) == (self.text_chunk, self.checkpoint_blocks):
            return self
        twin = copy.copy(self)
        twin.text_chunk, twin.checkpoint_blocks, twin._attached = text_chunk, checkpoint_blocks, []
        return twin

    @contextlib.contextmanager
    def attached_modules(self, module: nn.Module) -> Iterator[None]:
        """Inside, hooks on the towers run `module`: what is run again finds its weights as they are now."""
        self._attached = [*self._attached, module]
        try:
            yield
        finally:
            self._attached = [other for other in self._attached if other is not module]

    def recomputing_blocks(self, tower: str, attached: Sequence[nn.Module]) -> contextlib.AbstractContextManager:
        """Context in which blocks keep nothing but their inputs, if `checkpoint_blocks`.

        tower: "image" or "text". attached: modules that hooks run through.
        """
        blocks = getattr(self, f"{tower}_blocks") if self.checkpoint_blocks and torch.is_grad_enabled() else []
        return recomputed_blocks([block.module for block in blocks], attached)

    def length_to_run(self, tokens: torch.Tensor) -> int:
        """(C, L) -> how many positions of whole prompts are run. UserError: the tower cannot be cut to L."""
        length = tokens.shape[1]
        if length == self.context_length:
            return self.shorten(tokens).shape[1]
        reason = "its text tower attends to both sides or pools the padding, so texts cannot be cut"
        if length > self.context_length:
            reason = "it has no more positions"
        if length > self.context_length or not self.causal:
            raise UserError(f"{self.name}: texts of {length} tokens, not {self.context_length}: {reason}")
        return length  # cut by the caller, who knows it once; looking again would wait for the GPU


def _modules(attached):
    return [inner for module in attached for inner in module.modules()]


def cosine_logits(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """(B, D), (C, D), scalar -> (B, C): scaled cosines. The only place that normalises both sides."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    common = torch.promote_types(image.dtype, text.dtype)  # stored features may be half, a classifier full
    return scale * image.to(common) @ text.to(common).t()


@torch.no_grad()
def text_classifier(
    backbone: ClipBackbone, classnames: Sequence[str], templates: str | Sequence[str], chunk: int = 512
) -> torch.Tensor:
    """C class names, templates with a {} each -> (C, D) zero-shot class vectors.

    One template: the raw features. Several: the mean of the normalised features. Underscores in names are
    spaces; `chunk` texts are encoded at once.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    for template in templates:
        if "{}" not in template:
            raise UserError(f'template "{template}" has no {{}} where the class name goes')
    names = [name.replace("_", " ") for name in classnames]
    rows = []
    for template in templates:  # the texts of one begin alike
        texts = [template.format(name) for name in names]
        parts = (backbone.tokenize(texts[i : i + chunk]) for i in range(0, len(texts), chunk))
        rows.append(torch.cat([backbone.encode_text(tokens, shared=None) for tokens in parts]))
    return rows[0] if len(rows) == 1 else F.normalize(torch.stack(rows), dim=-1).mean(dim=0)
