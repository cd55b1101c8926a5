"""SourceOnly: trained on the source domains alone, the baseline of every domain adaptation method."""

from ..build import TRAINER_REGISTRY
from ..network import Classifies
from ..trainer import TrainerXU


@TRAINER_REGISTRY.register()
class SourceOnly(Classifies, TrainerXU):
    """Cross-entropy on the labelled batch; the target images are read and left aside."""

    CONFIG = "SOURCEONLY"
