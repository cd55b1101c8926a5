"""Which experts answer for an image of an unseen or unnamed task, and how much each says.

ConDU (arXiv 2503.10705): an image is compared, by the pretrained model alone, with one prototype per class of every
task; the tasks it resembles most vote with their experts' logits. The paper weighs expert i by its similarity s_i;
the released code takes the plain mean of the pretrained model and four experts. Neither fixes the other's choices,
so a `Vote` names them all and `PRESETS` holds both.

Shapes: B images, C classes of the label space, C_i classes of task i, D joint width, N training images, T tasks.
Nothing here keeps a gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Weighting = Literal["uniform", "similarity", "minmax"]
Space = Literal["logits", "probabilities"]
MIN_RANGE = 1e-6  # of an image's similarities, below which minmax takes them for equal
MIN_TEMP = 0.02  # exp(1 / 0.02) = 5e21; float32, which ends at 3e38, must hold it times a sum of logits
ROWS = 4096  # images averaged at once in float64


@torch.no_grad()
def prototypes(features: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """What the classes of a task look like to the pretrained model -> (C, D), unit rows, float32.

    features: (N, D) of training images, any length of rows; labels: (N,) in 0..C-1; text: (C, D), each class's mean
    over its prompts. A row is the mean of the class's unit image features plus its text row, normalised;
    a class without images has its text alone (N may be 0).
    """
    features = features.cpu() if features.is_mps else features  # mps has no float64
    sums = torch.zeros(text.shape, dtype=torch.float64, device=features.device)
    for rows, owners in zip(features.split(ROWS), labels.to(features.device).split(ROWS), strict=True):
        sums.index_add_(0, owners, normalize(rows.double(), dim=-1))
    counts = torch.bincount(labels.to(features.device), minlength=len(text)).unsqueeze(1)
    images = sums / counts.clamp(min=1)
    return normalize(images + text.to(features.device, torch.float64), dim=-1).float()


@torch.no_grad()
def similarity(features: Tensor, prototypes: Sequence[Tensor]) -> Tensor:
    """Cosine of each image and the nearest prototype of each task -> (B, T), float32.

    features: (B, D), any length of rows; prototypes: T tensors (C_i, D), on any device. Tasks that share a prototype
    have equal cosines with it, on any processor.
    """
    rows = torch.cat([p.to(features.device, torch.float32) for p in prototypes])
    distinct, places = rows.unique(dim=0, return_inverse=True)
    if len(distinct) == len(rows):
        distinct, places = rows, slice(None)  # as they come
    cosines = (normalize(features.float(), dim=-1) @ normalize(distinct, dim=-1).T)[:, places]  # equal rows: once
    return torch.stack([part.amax(1) for part in cosines.split([len(p) for p in prototypes], dim=1)], dim=1)


@dataclass(frozen=True)
class Vote:
    """Who votes for an image, and with what weight.

    include_pretrained: the pretrained model votes too, with the weight of the best expert.
    k: experts that vote, those of the highest similarity; more than there are means all.
    weighting: "uniform": 1; "similarity": s_i as it is (a negative one votes against);
        "minmax": exp((s_i - min s) / max(max s - min s, 1e-6) / temp), min and max over all T experts.
    space: what is summed: "logits", or "probabilities" after each model's own softmax.
    temp: of minmax, at least 0.02.
    """

    include_pretrained: bool
    k: int
    weighting: Weighting
    space: Space = "logits"
    temp: float = 1.0

    @torch.no_grad()
    def chosen(self, similarity: Tensor) -> Tensor:
        """The experts that vote -> (B, T) bool. similarity: (B, T); of equal ones the earlier task is taken."""
        best = similarity.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, best, True)

    @torch.no_grad()
    def weights(self, similarity: Tensor) -> Tensor:
        """What each model's vote counts -> (B, 1 + T) float32, the pretrained model's first; 0 for who has none.

        similarity: (B, T). The weights of an image do not sum to 1: a common positive factor elects nobody else.
        """
        chosen, known = self.chosen(similarity), similarity.float()
        if self.weighting == "uniform":
            experts = torch.ones_like(known)
        elif self.weighting == "similarity":
            experts = known
        else:
            low, high = known.aminmax(dim=1, keepdim=True)
            experts = ((known - low) / (high - low).clamp(min=MIN_RANGE) / self.temp).exp()
        pretrained = experts.amax(1, keepdim=True) * self.include_pretrained
        return torch.cat([pretrained, experts * chosen], dim=1)


@torch.no_grad()
def vote(logits: Tensor, similarity: Tensor, rule: Vote) -> Tensor:
    """Weighted sum over the models -> (B, C) float32.

    logits: (1 + T, B, C), the pretrained model's first, all over the same classes; what a model that has no vote for
    an image says of it may be anything finite. similarity: (B, T).
    """
    weights = rule.weights(similarity).to(logits.device)
    said = logits.float().softmax(-1) if rule.space == "probabilities" else logits.float()
    return torch.einsum("bm,mbc->bc", weights, said)


def vote_rule(node) -> Vote:
    """The config node TRAINER.CONDU.VOTE as a rule."""
    return Vote(node.INCLUDE_PRETRAINED, node.K, node.WEIGHTING, node.SPACE, node.TEMP)


# Paper: K is not given in its text; 4 is the released default.
PRESETS = {
    "paper": Vote(include_pretrained=False, k=4, weighting="similarity"),
    "released": Vote(include_pretrained=True, k=4, weighting="uniform"),
}
