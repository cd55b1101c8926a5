"""Dassl's `dassl.engine.trainer`: the trainer classes, and every name that code written for Dassl finds there."""

from importlib import import_module

from .base import TrainerBase
from .loops import TrainerX, TrainerXU
from .network import SimpleNet
from .simple import SimpleTrainer

_ELSEWHERE = {  # what Dassl's module imports, others import from it; late, for TensorBoard's takes a second
    "dassl.data": "DataManager",
    "dassl.evaluation": "build_evaluator",
    "dassl.modeling": "build_backbone build_head",
    "dassl.optim": "build_lr_scheduler build_optimizer",
    "dassl.utils": "AverageMeter MetricMeter count_num_param load_checkpoint load_pretrained_weights mkdir_if_missing "
    "resume_from_checkpoint save_checkpoint tolist_if_not",
    "collections": "OrderedDict",
    "torch": "nn",
    "torch.utils.tensorboard": "SummaryWriter",
    "tqdm": "tqdm",
}
_MODULES = {"datetime": "datetime", "json": "json", "np": "numpy", "osp": "os.path", "time": "time", "torch": "torch"}
__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU", *" ".join(_ELSEWHERE.values()).split()]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(_MODULES[name])
    for module, names in _ELSEWHERE.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
