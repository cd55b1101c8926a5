"""The trainer classes under the module path that Dassl gives them."""

from .base import TrainerBase
from .loops import TrainerX, TrainerXU
from .network import SimpleNet
from .simple import SimpleTrainer

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]
