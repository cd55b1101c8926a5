"""What the trainers of dg, da and ssl share: Dassl's SimpleNet (backbone, head, classifier) on cross-entropy.

Letters: B images, C classes.
"""

import torch.nn.functional as F

from dassl.metrics import compute_accuracy

from .precision import precision_key


class Classifies:
    """Mixed into TrainerX or TrainerXU; the model is what their default `build_model` makes."""

    KEYS = {"PREC": precision_key("fp32")}

    def supervised(self, logits, label):
        """Cross-entropy of (B, C) and (B,), a scalar; notes the accuracy for the log line."""
        self.note(acc=compute_accuracy(logits.detach(), label)[0])
        return F.cross_entropy(logits, label)
