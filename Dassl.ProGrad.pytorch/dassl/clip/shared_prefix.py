"""Texts that begin alike, encoded without computing anything twice.

In a causal tower what a position holds depends on nothing behind it. So the first positions, where all texts are the
same (start token, shared context), run once, and each text's own positions see their keys and values. All positions
lie in one packed row, (1, P, W): first those that are shared, then each text's own, texts of similar length together.
Norms, MLPs and projections are called on that row as they stand, with their hooks; the attention modules alone get
another `forward` for the length of the pass.

What would not be the same on a packed row (a stranger's hook, an exchanged module, a tower of another make) runs on
whole prompts instead: `layout_of` then gives None.

Letters: C texts, L tokens, k shared positions, S own positions of all texts, P = k + S, H heads, W width.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.weak import WeakTensorKeyDictionary

from dassl.utils import tensor_checksum

from .recompute import recomputed
from .tiny.model import Attention

# A row of up to SHORT positions is one attention call under a mask. In a longer one texts of similar length go
# together, and one more group costs as much as GROUP tokens. Beside the products of a GPU calls are dear.
SHORT = {"cpu": 256}
GROUP = {"cpu": 16}
SHORT_ELSEWHERE, GROUP_ELSEWHERE = 1024, 512
KEPT = 8  # layouts of one tensor of tokens
TOWERS = {"clip.model.CLIP", "open_clip.model.CLIP", "open_clip.model.CustomTextCLIP",
          "open_clip.transformer.TextTransformer", "dassl.clip.tiny.model.TinyCLIP"}  # fmt: skip
BLOCKS = {"clip.model.ResidualAttentionBlock", "open_clip.transformer.ResidualAttentionBlock",
          "dassl.clip.tiny.model.Block"}  # fmt: skip
POSITIONWISE = {"Linear", "NonDynamicallyQuantizableLinear", "Embedding", "LayerNorm", "LayerNormFp32", "GELU",
                "QuickGELU", "LayerScale", "Identity", "Sequential", "ModuleList", "Transformer"}  # fmt: skip
PACKAGES = ("torch.nn.modules.", "clip.model.", "open_clip.", "dassl.clip.tiny.")
HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")

_layouts: Any = WeakTensorKeyDictionary()  # tokens -> {what it was made for: layout}; to look at tokens waits for a GPU


@dataclass(frozen=True)
class Part:
    """Texts that run together. index (S,): their own positions among C * L; places (S,): those in the prompt;
    ends (C,): where each text ends among S; groups: texts and length of each, with its causal mask; of a short row
    none, but one mask (k + S, k + S)."""

    index: Tensor
    places: Tensor
    ends: Tensor
    groups: tuple[tuple[int, int, Tensor], ...]
    mask: Tensor | None


@dataclass(frozen=True)
class Layout:
    """shared: k. parts: chunks of texts. back (C,): the place of each text among those of all parts."""

    shared: int
    parts: tuple[Part, ...]
    back: Tensor


# Which texts, and where their tokens lie


def layout_of(clip: Any, tokens: Tensor, shared: int | None) -> Layout | None:
    """Where the tokens (C, L) lie in a packed row; None where whole prompts are right, or not dearer.

    shared: so many positions are the same for all texts; None: as many as the tokens say. They are looked at once.
    """
    if shared == 0 or len(tokens) < 2 or not (clip.share_prefix and clip.causal and clip.short_text):
        return None
    if tokens.shape[1] > clip.context_length or isinstance(tokens, FakeTensor):  # a fake one cannot be looked at
        return None
    counted = tokens.device.type != "cpu" and not tokens.is_inference()  # but for what is written through .data
    version = tokens._version if counted else tensor_checksum({"": tokens})
    key, known = (version, clip.name, clip.digest, clip.text_chunk, shared), _layouts.setdefault(tokens, {})
    if key not in known:
        if len(known) >= KEPT:  # one buffer may hold other texts in each step
            known.clear()
        with torch.inference_mode(False), torch.no_grad():  # whatever the mode, a later step may use it
            known[key] = _lay_out(clip, tokens, shared)
    layout = known[key]
    return layout if layout and "encode_text" not in vars(clip.module) and _packs(clip, layout.shared) else None


def _lay_out(clip, tokens, shared):
    lengths = clip.lengths(tokens).tolist()
    if shared is None:
        shared = int((tokens == tokens[:1]).all(0).long().cumprod(0).sum())
    shared = min(shared, min(lengths) - 1)  # an own position is left to each text: its end
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size, kind = clip.text_chunk or len(order), tokens.device.type
    chunks = [order[at : at + size] for at in range(0, len(order), size)]
    own = [[lengths[text] - shared for text in chunk] for chunk in chunks]
    if not shared or shared + sum(map(sum, own)) >= len(order) * max(lengths):
        return None
    short = [shared + sum(some) <= SHORT.get(kind, SHORT_ELSEWHERE) for some in own]
    calls = [0 if few else GROUP.get(kind, GROUP_ELSEWHERE) for few in short]
    grouped = map(_groups, own, calls)
    parts = (_part(*row, shared, tokens) for row in zip(chunks, grouped, own, short, strict=True))
    return Layout(shared, tuple(parts), torch.tensor(order, device=tokens.device).argsort())


def _groups(lengths: Sequence[int], call: int) -> list[tuple[int, int]]:
    """Rising lengths -> [(count, longest), ...], cut where padding and calls, counted in tokens, are least."""
    found = [(length, len(list(some))) for length, some in itertools.groupby(lengths)]
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for last, (longest, _) in enumerate(found):
        ways = []
        for first in range(last + 1):
            count = sum(many for _, many in found[first : last + 1])
            ways.append((best[first][0] + count * longest + call, [*best[first][1], (count, longest)]))
        best.append(min(ways))
    return best[-1][1]


def _part(texts, groups, own, short, shared, tokens):
    device, rest, at = tokens.device, list(zip(texts, own, strict=True)), 0
    index, places, ends, masks = [], [], [], []
    for count, length in groups:
        some, rest = torch.tensor(rest[:count]), rest[count:]
        steps = torch.arange(length)
        index.append((some[:, :1] * tokens.shape[1] + shared + steps).flatten())
        places.append((shared + steps).repeat(count))
        ends.append(at + length * torch.arange(count) + some[:, 1] - 1)
        masks.append((count, length, torch.full((length, length), -torch.inf, device=device).triu(1)))
        at += count * length
    index, places, ends = (torch.cat(some).to(device) for some in (index, places, ends))
    if not short:
        return Part(index, places, ends, tuple(masks), None)
    text = torch.cat([index.new_full((shared,), -1), index // tokens.shape[1]])  # of each position; -1: of all
    seen = ((text == -1) | (text == text[:, None])).tril()
    return Part(index, places, ends, (), torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf))


# Whether a packed row says the same


def _packs(clip, shared):
    """Is the tower as its package made it, with no hooks but `positionwise` ones, on shared positions if on some?"""
    tower = clip.text_tower
    everywhere = (hook for table in HOOKS for hook in getattr(torch_module, f"_global_{table}").values())
    if not all(str(getattr(hook, "__module__", "")).startswith("torch.utils.") for hook in everywhere):
        return False  # torch's own counters only look on
    kinds = {_name(type_of(module)) for module in (tower, clip.module)}
    if not kinds <= TOWERS or getattr(tower, "use_pad_mask", False):
        return False
    uncalled = tower, tower.transformer, tower.transformer.resblocks  # here the blocks are called one by one
    if getattr(tower.transformer, "grad_checkpointing", False):
        return False
    for module in _inside(tower):
        kind, facts = type_of(module), vars(module)
        work = "positions" if module is tower else _work_of(kind, kind.forward)
        if not work or "forward" in facts or work != "positions" and not _can_be_replaced(module):
            return False
        for hook in (hook for table in HOOKS if facts[f"_{table}"] for hook in facts[f"_{table}"].values()):
            places = getattr(hook, "places", None)
            passes = getattr(hook, "positionwise", False) and (places is None or places.stop <= shared)
            if not passes or any(module is each for each in uncalled):
                return False
    return len({block.module.attn for block in clip.text_blocks}) == len(clip.text_blocks)  # none is another's, too


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all that a text passes; not what only makes weights (parametrisations)."""
    yield module
    for name, child in module._modules.items():
        if child is not None and name not in ("visual", "parametrizations"):
            yield from _inside(child)


def type_of(module: nn.Module) -> type:
    """Its class, as it was before parametrisations."""
    return type_before_parametrizations(module) if "parametrizations" in module._modules else type(module)


def _name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _work_of(kind: type, forward: Callable) -> str:
    """What a class of modules does: works on "positions" each by itself, is a "block" or "attention"; "" is unknown."""
    name = _name(kind)
    if not f"{forward.__module__}.".startswith(PACKAGES) or hasattr(forward, "__wrapped__"):  # a patch of the class
        return ""
    if name.startswith(PACKAGES) and name.rpartition(".")[2] in POSITIONWISE:
        return "positions"
    if kind in (nn.MultiheadAttention, Attention):
        return "attention"
    return "block" if name in BLOCKS else ""


def _can_be_replaced(module):
    """Can `_SharedAttention` stand for it, or for its attention, if it is a block?"""
    if module._compiled_call_impl is not None or not isinstance(module, nn.MultiheadAttention):
        return module._compiled_call_impl is None and getattr(module, "causal", True)
    plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    return plain and not (module.training and module.dropout)


# The pass


def encode_packed(
    clip: Any, attached: Sequence[nn.Module], layout: Layout, tokens: Tensor, embeddings: Tensor | None = None
) -> Tensor:
    """Texts (C, L), or embeddings (C, L, W) in place of the tokens' own -> (C, D).

    attached: modules that hooks run through. Shared positions of embeddings are read off the first text. With
    `text_chunk` the shared positions run first, and each chunk, on their keys and values, is run again for gradients.
    """
    shared, parts = layout.shared, layout.parts
    rows = tokens if embeddings is None else embeddings.to(clip.dtype)
    first, own = rows[0, :shared], [rows.flatten(0, 1)[part.index] for part in parts]
    if len(parts) == 1:
        return _run(clip, attached, shared, parts[0], torch.cat([first, own[0]]))[layout.back]
    kept: list[Tensor] = []
    _run(clip, attached, shared, None, first, kept)
    modules, again = [*_inside(clip.text_tower), *attached], torch.is_grad_enabled()
    features = []
    for part, row in zip(parts, own, strict=True):
        inputs = clip, attached, shared, part, row, kept
        features.append(recomputed(_run, modules, *inputs) if again else _run(*inputs))
    return torch.cat(features)[layout.back]


def _run(clip, attached, shared, part, row, kept=None):
    """One packed row (P,) of tokens or (P, W) of embeddings -> (C, D) of the texts of `part`.

    kept: keys and values of the shared positions, two a block (H, k, W / H). Where part is None the row is those
    positions alone, and `kept` is filled; elsewhere, if it is given, they are not in the row.
    """
    begins, places = kept is None or part is None, []
    if begins:
        places.append(torch.arange(shared, device=row.device))
    if part is not None:
        places.append(part.places)
    tower, blocks = clip.text_tower, clip.text_blocks
    states = row if row.is_floating_point() else clip.embed(row)
    states = states + tower.positional_embedding[torch.cat(places)].to(states.dtype)
    x = states[None] if blocks[0].batch_first else states[:, None]  # (1, P, W) or (P, 1, W)
    with _shared_attention(blocks, shared if begins else 0, part, kept), contextlib.ExitStack() as within:
        if not begins:
            within.enter_context(_without_places(tower))
        within.enter_context(clip.recomputing_blocks("text", attached))
        for block in blocks:
            x = block.module(x)
    if part is None:
        return x
    ends = part.ends + shared if begins else part.ends
    x = tower.ln_final(x.flatten(0, 1)[ends][:, None])[:, 0].to(clip.dtype)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


@contextlib.contextmanager
def _shared_attention(blocks, begins, part, kept):
    """Inside, the attention modules of the blocks work on a packed row."""
    attentions = [block.module.attn for block in blocks]
    for number, attention in enumerate(attentions):
        vars(attention)["forward"] = _SharedAttention(attention, 2 * number, begins, part, kept)
    try:
        yield
    finally:
        for attention in attentions:
            del vars(attention)["forward"]


class _SharedAttention:
    """`forward` of an attention module on a packed row, in fp32 at least: gradients of many texts meet in a prefix.

    begins: shared positions at the front of the row. kept, from `at` on: their keys and values, read or noted.
    """

    def __init__(self, module, at, begins, part, kept):
        self.module, self.at, self.begins, self.part, self.kept = module, at, begins, part, kept

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """(1, P, W) or (P, 1, W) -> the same shape, as the module returns it."""
        module, ours = self.module, type_of(self.module) is Attention
        joint = module.qkv(x) if ours else F.linear(x, module.in_proj_weight, module.in_proj_bias)
        rows = joint.reshape(x.numel() // x.shape[-1], 3, module.heads if ours else module.num_heads, -1)
        with torch.autocast(x.device.type, enabled=False):
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).permute(1, 2, 0, 3)  # (3, H, P, W / H)
            mixed = self.mixed(*wide).transpose(0, 1).reshape(x.shape).to(joint.dtype)
        if ours:
            return module.out_proj(mixed)
        return F.linear(mixed, module.out_proj.weight, module.out_proj.bias), None

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Values (H, P, W / H) as the queries weigh them: shared positions causally, others on them and their own."""
        begins, part, kept = self.begins, self.part, self.kept
        keys, values = (k[:, :begins], v[:, :begins]) if begins else kept[self.at : self.at + 2]
        if part is None:
            if len(kept) == self.at:  # what is run again for gradients notes nothing
                kept += [keys, values]
            return F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        if part.mask is not None:
            if not begins:
                k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
            mask = part.mask[-q.shape[1] :].to(q.dtype)
            return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        own = self.grouped(q[:, begins:], keys, values, k[:, begins:], v[:, begins:])
        if not begins:
            return own
        return torch.cat([F.scaled_dot_product_attention(q[:, :begins], keys, values, is_causal=True), own], 1)

    def grouped(self, q: Tensor, keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Own positions (H, S, W / H) on shared keys and values (H, k, W / H), and causally on those of their text."""
        q = q * q.shape[-1] ** -0.5
        far, weights, near, at = q @ keys.mT, [], [], 0  # far (H, S, k)
        for count, length, mask in self.part.groups:
            rows = slice(at, at := at + count * length)
            far_g, q_g, k_g, v_g = (some[:, rows].unflatten(1, (count, length)) for some in (far, q, k, v))
            weight = torch.cat([far_g, q_g @ k_g.mT + mask], -1).softmax(-1)  # (H, count, length, k + length)
            weights.append(weight[..., :-length].flatten(1, 2))
            near.append((weight[..., -length:] @ v_g).flatten(1, 2))
        return torch.cat(weights, 1) @ values + torch.cat(near, 1)


@contextlib.contextmanager
def _without_places(tower):
    """Inside, hooks on shared positions rest: those positions are not in the row."""
    tables = [vars(module)["_forward_pre_hooks"] for module in _inside(tower)]
    before = [dict(table) for table in tables]
    for table in tables:
        for key in [key for key, hook in table.items() if getattr(hook, "places", None)]:
            del table[key]
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)  # in their order
