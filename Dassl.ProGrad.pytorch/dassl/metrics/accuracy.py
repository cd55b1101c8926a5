"""Top-k accuracy. B: batch, C: classes."""

from dassl.utils import UserError


def compute_accuracy(output, target, topk=(1,)):
    """Share of the batch whose label is among the k best, in percent.

    Args:
        output: logits (B, C), or a tuple or list that begins with them.
        target: labels (B,).
        topk: the values of k.

    Returns:
        One tensor of shape (1,) per k.

    Raises:
        UserError: k exceeds C.
    """
    if isinstance(output, tuple | list):
        output = output[0]
    deepest = max(topk)
    if deepest > output.shape[1]:
        raise UserError(f"Top-{deepest} accuracy was asked for, but there are {output.shape[1]} classes")
    ranked = output.topk(deepest, dim=1).indices  # (B, k)
    hits = ranked.eq(target.view(-1, 1))
    return [hits[:, :k].sum().float().mul(100.0 / target.shape[0]).reshape(1) for k in topk]
