"""SourceOnly: trained on the source domains alone, the baseline of every domain adaptation method."""

from ..build import TRAINER_REGISTRY
from ..ssl.sup_baseline import LabelledOnly


@TRAINER_REGISTRY.register()
class SourceOnly(LabelledOnly):
    """Cross-entropy on the labelled batch; the target pictures are read and left aside."""

    CONFIG = "SOURCEONLY"
