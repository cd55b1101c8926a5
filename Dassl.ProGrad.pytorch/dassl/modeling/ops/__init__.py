"""Small operations shared by trainers."""

from .reverse_grad import ReverseGrad
from .utils import create_onehot, ema_model_update, linear_rampup, sharpen_prob, sigmoid_rampup

__all__ = [
    "ReverseGrad",
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "sharpen_prob",
    "sigmoid_rampup",
]
