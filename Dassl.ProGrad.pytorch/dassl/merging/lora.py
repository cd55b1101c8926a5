"""LoRA (Hu et al., arXiv 2106.09685) in state dicts: an update of a weight as the product of two thin factors.

peft's names: `<module>.lora_A.weight` (r, in) and `<module>.lora_B.weight` (out, r), with the adapter's name before
`.weight` in a live model; convolutions hold (r, in, h, w) and (out, r, 1, 1). The weight changes by scaling * B A.

Merging the factors is not merging the product: mean(B) mean(A) is not mean(B A), and (B Q, Q^-1 A) is the same update
in other factors. `products` gives the updates themselves, on which a merge means what it says and whose ranks may
differ; `factors` brings a merged update back to thin factors, the nearest ones of that rank.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|delta)(?P<adapter>\.[^.]+)?\.weight")
OTHER = re.compile(r".*\.lora_(embedding_[AB]|magnitude_vector)\b.*")  # not a product of two matrices



def is_factor(name: str) -> bool:
    """Is it one of a pair's names?"""
    match = PART.fullmatch(name)
    return match is not None and match["part"] != "delta"


def ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """{module: r} of a state's pairs."""
    matches = ((PART.fullmatch(name), value) for name, value in state.items())
    return {match["module"]: len(value) for match, value in matches if match and match["part"] == "A" and value.dim()}


def products(state: Mapping[str, Tensor], scaling: float | Mapping[str, float] = 1.0) -> dict[str, Tensor]:
    """Each pair of factors as `<module>.lora_delta.weight` = scaling * B A, (out, in) or (out, in, h, w).

    All else as it is. scaling: one number (peft: lora_alpha / r), or one for each module. ValueError for a factor
    without its partner, for pairs that do not fit, and for embeddings and DoRA's magnitudes, which are no such product.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if OTHER.fullmatch(name):
            raise ValueError(f"{name} is no plain LoRA factor: it has no product to merge")
        match = PART.fullmatch(name)
        if match is None or match["part"] == "delta":
            out[name] = value
            continue
        partner = _name(match, "B" if match["part"] == "A" else "A")
        if partner not in state:
            raise ValueError(f"{name} has no partner {partner}")
        if match["part"] == "A":
            a, b = value, state[partner]
            if b.dim() < 2 or b.dim() != a.dim() or b.shape[1] != a.shape[0] or b[0, 0].numel() != 1:
                raise ValueError(f"{name} {tuple(a.shape)} and its B {tuple(b.shape)} are no pair of LoRA factors")
            product = (b.flatten(1).double() @ a.flatten(1).double()).view(b.shape[0], *a.shape[1:]).to(a.dtype)
            out[_name(match, "delta")] = _of(scaling, match["module"]) * product
    return out


def factors(state: Mapping[str, Tensor], rank: int | Mapping[str, int]) -> dict[str, Tensor]:
    """`products` undone: of each update the pair of factors of that rank whose product, of scaling 1, is nearest to it.

    The truncated singular value decomposition U S V^T (Eckart and Young): B = U sqrt(S), A = sqrt(S) V^T. Where the
    rank exceeds that of the update, zeros fill the factors.
    """
    out: dict[str, Tensor] = {}
    for name, delta in state.items():
        match = PART.fullmatch(name)
        if match is None or match["part"] != "delta":
            out[name] = delta
            continue
        r = _of(rank, match["module"])
        if r < 1:
            raise ValueError(f"The rank of {match['module']} is {r}, expected at least 1")
        u, s, vh = torch.linalg.svd(delta.flatten(1).double(), full_matrices=False)
        root = s[:r].sqrt()
        a, b = s.new_zeros(r, vh.shape[1]), s.new_zeros(len(u), r)
        a[: len(root)], b[:, : len(root)] = root[:, None] * vh[:r], u[:, :r] * root
        out[_name(match, "A")] = a.view(r, *delta.shape[1:]).to(delta.dtype)
        out[_name(match, "B")] = b.view(len(u), r, *[1] * (delta.dim() - 2)).to(delta.dtype)
    return out


def _name(match: re.Match, part: str) -> str:
    return f"{match['module']}.lora_{part}{match['adapter'] or ''}.weight"


def _of(value, module: str):
    return value[module] if isinstance(value, Mapping) else value
