"""CoOp's learned prompt (Zhou et al., arXiv 2109.01134): context vectors around each class name.

Letters: C classes, N context vectors, L tokens, W text width.
"""

import torch
from torch import Tensor, nn

from dassl.clip import ClipBackbone, layout_of
from dassl.utils import get_logger

log = get_logger()

POSITIONS = ("end", "middle", "front")
DEFAULT_WORDS = "a photo of a"  # what CTX_INIT True stands for


def context_words(ctx_init: bool | str) -> str:
    """The words that initialise the context; "" means random vectors."""
    if ctx_init is True:
        return DEFAULT_WORDS
    return ctx_init.replace("_", " ").strip() if ctx_init else ""


class PromptLearner(nn.Module):
    """Context vectors `ctx`, (N, W) or (C, N, W), and the prompts they make for the class names.

    words: initialises the context with these words' embeddings and sets N to their token count; "" draws
    it from a normal of deviation 0.02. The fixed embeddings are no part of the state: it holds `ctx` alone.
    `shared`: so many positions, from the first, are the same in all prompts.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        classnames: list[str],
        *,
        n_ctx: int = 16,
        words: str = "",
        class_specific: bool = False,
        position: str = "end",
    ):
        super().__init__()
        backbone.require_embeddings()
        names = [" ".join(name.replace("_", " ").split()) for name in classnames]
        self.words = words
        vectors = word_context(backbone, words) if words else None
        if vectors is not None and len(vectors) != n_ctx:
            log.info(f"N_CTX is {n_ctx}, but the context {words!r} has {len(vectors)} tokens: N_CTX = {len(vectors)}")
        self.n_ctx = n_ctx if vectors is None else len(vectors)
        if vectors is None:
            vectors = torch.empty(*([len(names)] if class_specific else []), self.n_ctx, backbone.width)
            nn.init.normal_(vectors, std=0.02)
            vectors = vectors.to(backbone.device)
        elif class_specific:
            vectors = vectors.expand(len(names), -1, -1)
        self.ctx = nn.Parameter(vectors.float().clone())
        before = {"end": self.n_ctx, "middle": self.n_ctx // 2, "front": 0}[position]  # context before the name
        alike = not class_specific and type(self).forward is PromptLearner.forward  # a subclass may know better
        self.shared = backbone.start_tokens + (before if alike else 0)
        for name, value in zip(("order", "tokens", "fixed"), self._layout(backbone, names, before), strict=True):
            self.register_buffer(name, value, persistent=False)
        layout_of(backbone, self.tokens, self.shared)  # looks at the tokens now: in a step that would wait for a GPU

    def _layout(self, backbone: ClipBackbone, names: list[str], cut: int) -> tuple[Tensor, Tensor, Tensor]:
        """order (C, L): which entry of [context | fixed embeddings] stands at each place of the prompt."""
        filler = " ".join(["a"] * self.n_ctx)  # one-token words hold the context's places
        tokens = backbone.shorten(backbone.tokenize([f"{filler} {name}." for name in names]))  # (C, L)
        n, first, total = self.n_ctx, backbone.start_tokens, tokens.shape[1]
        # counted behind the filler: some tokenisers (SigLIP 2's) split a word at the start of a text otherwise
        lengths = [count - n for count in backbone.token_counts([f"{filler} {name}" for name in names])]
        ctx, fixed, rows = list(range(n)), list(range(n, n + total)), []
        for length in lengths:
            name, tail = fixed[first + n : first + n + length], fixed[first + n + length :]
            rows.append(fixed[:first] + ctx[:cut] + name + ctx[cut:] + tail)
        order = torch.tensor(rows, device=tokens.device)
        return order, tokens, backbone.embed(tokens).detach()

    def forward(self) -> Tensor:
        """Prompt embeddings (C, L, W)."""
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(len(self.tokens), -1, -1)
        pool = torch.cat([ctx.to(self.fixed.dtype), self.fixed], dim=1)  # (C, N + L, W)
        return pool.gather(1, self.order[..., None].expand(-1, -1, pool.shape[-1]))


def word_context(backbone: ClipBackbone, words: str) -> Tensor:
    """Embeddings (N, W) of the words' own tokens."""
    count = backbone.token_counts([words])[0]
    first = backbone.start_tokens
    return backbone.embed(backbone.tokenize([words]))[0, first : first + count].detach()
