"""Linear mode connectivity: the path between two solutions and the losses along it.

MERGETUNE (arXiv 2601.10497) looks for w, near the zero-shot solution w1, such that the straight path from
the fine-tuned solution w2 to w has a low task loss:

    L(w) = L2(w) + lambda * ||w - w1||^2 + beta * E_t[ L2(w2 + t (w - w2)) ]

A solution is a tensor or a dict of tensors. Letters: B images, C classes, D joint width, S line points.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Solution = TypeVar("Solution", Tensor, Mapping[str, Tensor])

GRIDS = ("released", "uniform")
FEATURE_DISTANCES = ("cosine", "l2", "l2sq")


def line_points(n: int, grid: str = "released") -> list[float]:
    """Where on the path the loss is evaluated; 0 is w2, 1 is w.

    `uniform`: i/n for i = 0 .. n-1 (the paper's t ~ U[0, 1)). `released`: 0.1, 0.1 + 1/n, ... below 1.01,
    as the authors' code does: n = 5 gives .1 .3 .5 .7 .9, n = 10 gives .1 .2 ... 1.0, n = 15 only 14 points.
    """
    if grid == "uniform":
        return [i / n for i in range(n)]
    return torch.arange(0.1, 1.01, 1 / n, dtype=torch.float64).tolist()


def interpolate(start: Solution, end: Solution, t: float) -> Solution:
    """start + t (end - start), tensor by tensor; both ends must hold the same names and shapes."""
    if isinstance(start, Tensor):
        if start.shape != end.shape:
            raise ValueError(f"Path between shapes {tuple(start.shape)} and {tuple(end.shape)}")
        return start + t * (end - start)
    if start.keys() != end.keys():
        raise ValueError(f"Path between different parameters: {sorted(start)} and {sorted(end)}")
    return {name: interpolate(value, end[name], t) for name, value in start.items()}


def line_loss(loss: Callable[[Solution], Tensor], start: Solution, end: Solution, points: list[float]) -> Tensor:
    """Mean of loss(start + t (end - start)) over the S points. The plain form: S evaluations of `loss`."""
    return torch.stack([loss(interpolate(start, end, t)) for t in points]).mean()


def line_logits(image: Tensor, start: Tensor, end: Tensor, points: Tensor, scale: Tensor | float) -> Tensor:
    """Cosine logits of every point of a path between class vectors, in closed form.

    With f_t = f_2 + t (f - f_2): x . f_t is linear in t and ||f_t||^2 a quadratic, so three inner products
    serve all points. image (B, D) unit norm; start f_2, end f (C, D) raw; points (S,). Returns (S, B, C).
    """
    step = end - start
    aa, ab, bb = ((a * b).sum(-1) for a, b in ((start, start), (start, step), (step, step)))
    t = points[:, None]
    norm_sq = aa + 2 * t * ab + t**2 * bb  # (S, C)
    t = points[:, None, None]
    dots = (image @ start.T)[None] + t * (image @ step.T)[None]  # (S, B, C)
    return scale * dots / norm_sq.clamp_min(1e-24).sqrt()[:, None, :]


def line_of_logits(start: Tensor, end: Tensor, points: Tensor) -> Tensor:
    """(B, C), (B, C), (S,) -> (S, B, C): logits where they are linear on the path, so that its ends say all."""
    return interpolate(start[None], end[None], points[:, None, None])


def feature_line_loss(
    image: Tensor, labels: Tensor, start: Tensor, end: Tensor, points: Tensor, scale: Tensor | float
) -> Tensor:
    """Mean cross-entropy over the S points of a path between class vectors; equals `line_loss` of the CE."""
    logits = line_logits(image, start, end, points, scale)  # (S, B, C)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(points)))


def anchor_distance(now: Tensor, anchor: Tensor, distance: str) -> Tensor:
    """How far class vectors (C, D) are from the anchor's; on unit vectors, mean over classes.

    cosine = 1 - cos (released code), l2 = norm, l2sq = squared norm = 2 x cosine (the paper's term).
    """
    now, anchor = F.normalize(now, dim=-1), F.normalize(anchor, dim=-1)
    if distance == "cosine":
        return 1 - (now * anchor).sum(-1).mean()
    gap_sq = (now - anchor).square().sum(-1)
    if distance == "l2sq":
        return gap_sq.mean()
    # the norm's gradient at 0 is not a number: keep the 0, drop the gradient
    safe = torch.where(gap_sq > 0, gap_sq, torch.ones_like(gap_sq)).sqrt()
    return torch.where(gap_sq > 0, safe, torch.zeros_like(gap_sq)).mean()


def weight_distance(now: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """||w - w1||^2 over all trainable parameters."""
    return torch.stack([(value - anchor[name]).square().sum() for name, value in now.items()]).sum()
