"""Small operations shared by trainers."""

from dassl.utils.late import late_imports

from .mixup import mixup  # noqa: F401  not late: its module has its name

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    batch_norm="BatchNorm1d BatchNorm2d",
    efdmix="EFDMix activate_efdmix crossdomain_efdmix deactivate_efdmix random_efdmix run_with_efdmix "
    "run_without_efdmix",
    mixstyle="MixStyle activate_mixstyle crossdomain_mixstyle deactivate_mixstyle random_mixstyle run_with_mixstyle "
    "run_without_mixstyle",
    reverse_grad="ReverseGrad",
    utils="create_onehot ema_model_update linear_rampup reverse_index sharpen_prob shuffle_index sigmoid_rampup",
)
__all__.append("mixup")
