"""Loss and accuracy on lines between solutions, and on the plane through three (Garipov et al., arXiv 1802.10026).

With solutions a, b, c: u along b - a, v along what c - a has beyond u, both of unit length; a point of the plane is
a + x u + y v. A solution is a tensor or a dict of tensors; lengths are those of all their values together.
Letters: B images, C classes, X, Y grid points along u and v, S line points.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.utils.progress import progress
from mergetune.lmc import Solution

Batches = list[tuple[Tensor, Tensor]]

POINTS = 21  # along each direction
MARGIN = 0.25  # beyond the solutions, of the larger extent they span
FLAT = 1e-4  # a triangle lower than this part of its base is a line


def score(trainer, space: str, start, end, points: Tensor, batches: Batches) -> dict[str, list[float]]:
    """Cross-entropy in nats and accuracy in percent at the S points of the line between two solutions."""
    loss = torch.zeros(len(points), dtype=torch.float64)
    correct = torch.zeros(len(points), dtype=torch.float64)
    # the model runs once for each point in the space of weights, so there one after another costs nothing
    parts = [points] if space == "features" else list(points[:, None])
    for images, labels in progress(batches, "scoring"):
        rows = [trainer.path_logits(space, start, end, part, images).float() for part in parts]
        for k, logits in enumerate(torch.cat(rows)):  # (B, C)
            loss[k] += F.cross_entropy(logits, labels, reduction="sum").item()
            correct[k] += (logits.argmax(1) == labels).sum().item()
    count = sum(len(labels) for _, labels in batches)
    return {"loss": (loss / count).tolist(), "accuracy": (100 * correct / count).tolist()}


def combine(a: Solution, b: Solution, scale: float) -> Solution:
    """a + scale * b."""
    if isinstance(a, Mapping):
        return {name: combine(value, b[name], scale) for name, value in a.items()}
    return a + scale * b


def dot(a: Solution, b: Solution) -> float:
    """Inner product over all values, in double precision."""
    if isinstance(a, Mapping):
        return sum(dot(value, b[name]) for name, value in a.items())
    return (a.cpu().double() * b.cpu().double()).sum().item()  # mps has no float64


def basis(a: Solution, b: Solution, c: Solution) -> tuple[Solution, Solution, list[tuple[float, float]]] | None:
    """u, v, and the coordinates of a, b and c; None where the three are (nearly) on one line."""
    first, second = combine(b, a, -1.0), combine(c, a, -1.0)
    width = dot(first, first) ** 0.5
    reach = dot(second, second) ** 0.5
    if width == 0 or reach == 0:
        return None
    u = combine(first, first, 1 / width - 1)  # first / width
    along = dot(second, u)
    rest = combine(second, u, -along)
    height = dot(rest, rest) ** 0.5
    if height <= FLAT * max(width, reach):
        return None
    return u, combine(rest, rest, 1 / height - 1), [(0.0, 0.0), (width, 0.0), (along, height)]


def axes(places: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Evenly spaced grid points along u and v, with the same margin on all sides: x (X,), y (Y,)."""
    bounds = [(min(values), max(values)) for values in zip(*places, strict=True)]
    margin = MARGIN * max(high - low for low, high in bounds)
    x, y = (torch.linspace(low - margin, high + margin, POINTS, dtype=torch.float64).tolist() for low, high in bounds)
    return x, y


def add_plane(card: dict, subset: str, trainer, solutions: dict, batches: Batches) -> None:
    """Loss and accuracy of one subset on the grid and at the solutions, into `card`; `missing` says why there is none.

    Class vectors depend on the subset's names, so each subset of the space of features has a plane of its own.
    """
    space = card["space"]
    order = ("zero_shot", "fine_tuned", "ours")  # x runs along the direct line
    directions = basis(*(solutions[name] for name in order)) if len(solutions) == 3 else None
    if directions is None:
        card["missing"] = f"a plane needs three solutions that are not on one line, of {', '.join(solutions)}"
        return
    u, v, places = directions
    xs, ys = axes(places)

    def row(xs: list[float], y: float) -> dict[str, list[float]]:
        """Loss and accuracy at those x of one y."""
        start, points = combine(origin, v, y), torch.tensor(xs, dtype=torch.float32, device=trainer.device)
        return score(trainer, space, start, combine(start, u, 1.0), points, batches)

    origin = solutions[order[0]]
    rows = [row(xs, y) for y in progress(ys, "rows of the plane")]
    plane: dict = {"x": xs, "y": ys, **{q: [row[q] for row in rows] for q in ("loss", "accuracy")}, "points": {}}
    for (x, y), name in zip(places, order, strict=True):
        plane["points"][name] = {"x": x, "y": y, **{q: values[0] for q, values in row([x], y).items()}}
    card[subset] = plane
