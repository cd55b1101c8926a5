"""Loss and accuracy at points of the straight line between two solutions of a stage-2 trainer.

Letters: B images, C classes, S line points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.utils.progress import progress

Batches = list[tuple[Tensor, Tensor]]


def score(trainer, space: str, start, end, points: Tensor, batches: Batches) -> dict[str, list[float]]:
    """Cross-entropy in nats and accuracy in percent at the S points of the line between two solutions."""
    loss = torch.zeros(len(points), dtype=torch.float64)
    correct = torch.zeros(len(points), dtype=torch.float64)
    # the model runs once for each point in the space of weights, so there one after another costs nothing
    parts = [points] if space == "features" else list(points[:, None])
    for images, labels in progress(batches, "scoring"):
        found = [trainer.path_logits(space, start, end, part, images).float() for part in parts]
        for k, logits in enumerate(torch.cat(found)):  # (B, C)
            loss[k] += F.cross_entropy(logits, labels, reduction="sum").item()
            correct[k] += (logits.argmax(1) == labels).sum().item()
    count = sum(len(labels) for _, labels in batches)
    return {"loss": (loss / count).tolist(), "accuracy": (100 * correct / count).tolist()}
