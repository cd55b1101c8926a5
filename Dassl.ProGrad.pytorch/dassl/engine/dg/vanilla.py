"""Vanilla: empirical risk minimisation, the baseline of every domain generalisation method."""

from ..build import TRAINER_REGISTRY
from ..network import Classifies
from ..trainer import TrainerX


@TRAINER_REGISTRY.register()
class Vanilla(Classifies, TrainerX):
    """Cross-entropy on all source domains together."""

    CONFIG = "VANILLA"
