"""Small operations shared by trainers."""

from .batch_norm import BatchNorm1d, BatchNorm2d
from .efdmix import (
    EFDMix,
    activate_efdmix,
    crossdomain_efdmix,
    deactivate_efdmix,
    random_efdmix,
    run_with_efdmix,
    run_without_efdmix,
)
from .mixstyle import (
    MixStyle,
    activate_mixstyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
)
from .mixup import mixup
from .reverse_grad import ReverseGrad
from .utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "EFDMix",
    "MixStyle",
    "ReverseGrad",
    "activate_efdmix",
    "activate_mixstyle",
    "create_onehot",
    "crossdomain_efdmix",
    "crossdomain_mixstyle",
    "deactivate_efdmix",
    "deactivate_mixstyle",
    "ema_model_update",
    "linear_rampup",
    "mixup",
    "random_efdmix",
    "random_mixstyle",
    "reverse_index",
    "run_with_efdmix",
    "run_with_mixstyle",
    "run_without_efdmix",
    "run_without_mixstyle",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]
