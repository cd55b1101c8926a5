"""What the trainers of dg, da and ssl share: Dassl's SimpleNet (backbone, head, classifier) on cross-entropy.

Letters: B images, C classes.
"""

import torch.nn.functional as F

from dassl.metrics import compute_accuracy

from .precision import precision_key


class Classifies:
    """Mixed into TrainerX or TrainerXU: cross-entropy on the labelled batch; the model is their `build_model`'s."""

    KEYS = {"PREC": precision_key("fp32")}

    def parse_batch_train(self, batch_x, batch_u=None):
        """Images (B, 3, H, W) and labels (B,), on the device; what more a subclass gives is left aside."""
        return batch_x["img"].to(self.device), batch_x["label"].to(self.device)

    def losses(self, *batches):
        image, label, *_ = self.parse_batch_train(*batches)
        return {"ce": self.supervised(self.model(image), label)}

    def supervised(self, logits, label):
        """Cross-entropy of (B, C) and (B,), a scalar; notes the accuracy for the log line."""
        self.log_metrics(acc=compute_accuracy(logits.detach(), label)[0])
        return F.cross_entropy(logits, label)
