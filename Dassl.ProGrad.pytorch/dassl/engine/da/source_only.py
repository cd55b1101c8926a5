"""SourceOnly: trained on the source domains alone, the baseline of every domain adaptation method."""

from ..build import TRAINER_REGISTRY
from ..classify import Classifies
from ..loops import TrainerXU


@TRAINER_REGISTRY.register()
class SourceOnly(Classifies, TrainerXU):
    """Cross-entropy on the labelled batch; the target images are read and left aside."""

    CONFIG = "SOURCEONLY"
