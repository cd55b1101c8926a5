"""Small operations shared by trainers."""

from .batch_norm import BatchNorm1d, BatchNorm2d
from .mixstyle import (
    MixStyle,
    activate_mixstyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
)
from .reverse_grad import ReverseGrad
from .utils import create_onehot, ema_model_update, linear_rampup, sharpen_prob, sigmoid_rampup

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "MixStyle",
    "ReverseGrad",
    "activate_mixstyle",
    "create_onehot",
    "crossdomain_mixstyle",
    "deactivate_mixstyle",
    "ema_model_update",
    "linear_rampup",
    "random_mixstyle",
    "run_with_mixstyle",
    "run_without_mixstyle",
    "sharpen_prob",
    "sigmoid_rampup",
]
