"""Top-k accuracy. B: batch, C: classes."""

from collections.abc import Sequence

from torch import Tensor


def compute_accuracy(output: Tensor | tuple | list, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Share of the batch whose label is among the k best, in percent -> one tensor (1,) for each k of `topk`.

    output: logits (B, C), or a tuple or list that begins with them. target: labels (B,).
    """
    logits = output[0] if isinstance(output, tuple | list) else output
    ranked = logits.topk(max(topk), dim=1).indices  # (B, k)
    hits = ranked.eq(target.view(-1, 1))
    return [hits[:, :k].sum().float().mul(100.0 / target.shape[0]).reshape(1) for k in topk]
