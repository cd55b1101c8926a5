"""Trainers: the base classes, the registry, and `launch.run`, which runs a config from start to results."""

from . import da, dg, ssl  # noqa: F401  they register themselves
from .build import TRAINER_REGISTRY, add_trainer_nodes, build_trainer, trainer_class
from .precision import Precision
from .trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__all__ = [
    "Precision",
    "SimpleNet",
    "SimpleTrainer",
    "TRAINER_REGISTRY",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "add_trainer_nodes",
    "build_trainer",
    "trainer_class",
]
