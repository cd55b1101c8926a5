"""Texts through a CLIP's text tower: whole prompts, cut behind the longest, on the module's own `encode_text`; or
packed, with what they share computed once (`shared_prefix`).

Letters: C texts, L tokens, D joint width, W width of the text tower.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .recompute import recomputed
from .shared_prefix import encode_packed, layout_of

_causal: Any = WeakTensorKeyDictionary()  # attention mask -> is it the causal one? To look at it waits for a GPU


def positionwise(hook: Callable, places: slice | None = None) -> Callable:
    """Declare that a hook treats every position by itself -> the hook; texts with it may run packed.

    places: it is a pre-hook that rewrites these positions of every text alike; then it runs where they are shared.
    """
    vars(hook).update(positionwise=True, places=places)
    return hook


def encode_texts(
    clip: Any, tokens: Tensor, embeddings: Tensor | None = None, *, shared: int | None = None, attached: Any = ()
) -> Tensor:
    """Tokens (C, L), and maybe embeddings (C, L, W) in their place -> (C, D), `clip.text_chunk` texts at a time.

    shared: so many positions, from the first, are the same for all texts, and run once where they can; None: as many
    as the tokens say. attached: modules that hooks run through. With gradients, chunks are run again for them.
    """
    layout = layout_of(clip, tokens, shared)
    unseen = embeddings is None or embeddings.device.type != "cpu"  # on a GPU that would wait
    if layout and _reads_left(clip) and (unseen or _begin_alike(embeddings, layout.shared)):
        return encode_packed(clip, attached, layout, tokens, embeddings)
    length = clip.length_to_run(tokens)
    tokens, embeddings = tokens[:, :length], None if embeddings is None else embeddings[:, :length]
    size = clip.text_chunk or len(tokens)
    if len(tokens) <= size:
        return _whole_prompts(clip, attached, tokens, embeddings)
    parts: list[tuple[Tensor, ...]] = [(part,) for part in tokens.split(size)]
    if embeddings is not None:
        parts = list(zip(tokens.split(size), embeddings.split(size), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([_whole_prompts(clip, attached, *part) for part in parts])
    modules = [*clip.text_tower.modules(), *attached]
    return torch.cat([recomputed(_whole_prompts, modules, clip, attached, *part) for part in parts])


def _begin_alike(embeddings, shared):
    """Are so many positions what the caller says?"""
    return bool((embeddings[:, :shared] == embeddings[:1, :shared]).all())


def _reads_left(clip):
    """Is each mask of the tower's attention still the causal one?"""
    owners = clip.text_tower, *(block.module for block in clip.text_blocks)
    masks = {getattr(owner, "attn_mask", clip) for owner in owners} - {clip}  # some have none
    for mask in masks - {None}:
        if mask not in _causal:
            _causal[mask] = torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
    return all(mask is not None and _causal[mask] for mask in masks)


def _whole_prompts(clip, attached, tokens, embeddings=None):
    """(C, L), and embeddings in place of the tokens' own -> (C, D)."""
    with contextlib.ExitStack() as within:
        if embeddings is not None:
            hook = clip.text_tower.token_embedding.register_forward_hook(lambda *_: embeddings)
            within.callback(hook.remove)
        if tokens.shape[1] < clip.context_length:
            within.enter_context(_short_positions(clip, tokens.shape[1]))
        within.enter_context(clip.recomputing_blocks("text", attached))
        return clip.module.encode_text(tokens)


@contextlib.contextmanager
def _short_positions(clip, length) -> Iterator[None]:
    """Lend the text tower `length` positions for one call; some towers take exactly what they hold.

    Written past nn.Module's own setter, which takes no tensor with a history for a parameter: so gradients
    still reach whole positions, and the order of parameters stays.
    """
    whole = []
    for owner in (clip.text_tower, *(block.module for block in clip.text_blocks)):
        for table in (owner._parameters, owner._buffers, vars(owner)):
            names = [name for name in ("positional_embedding", "attn_mask") if torch.is_tensor(table.get(name))]
            whole += [(table, name, table[name]) for name in names]
    try:
        for table, name, tensor in whole:
            table[name] = tensor[:length] if name == "positional_embedding" else tensor[..., :length, :length]
        yield
    finally:
        for table, name, tensor in whole:
            table[name] = tensor
