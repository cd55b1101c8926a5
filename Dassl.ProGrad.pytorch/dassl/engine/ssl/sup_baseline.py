"""SupBaseline: the labelled images alone, with as many steps as the methods that use the others."""

from ..build import TRAINER_REGISTRY
from ..network import Classifies
from ..trainer import TrainerXU


@TRAINER_REGISTRY.register()
class SupBaseline(Classifies, TrainerXU):
    """The baseline of every semi-supervised method."""

    CONFIG = "SUPBASELINE"
