"""`cfg.OPTIM` to optimiser."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from yacs.config import CfgNode as CN

from dassl.utils import UserError, WrongType, check_availability

from .radam import RAdam

Model = nn.Module | Iterable[torch.Tensor] | Iterable[dict]
AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(model: Model, optim_cfg: CN, param_groups: Iterable | None = None) -> torch.optim.Optimizer:
    """Optimiser OPTIM.NAME for all parameters of `model`, frozen ones included.

    model: module, or iterable of parameters or of parameter groups. optim_cfg: the OPTIM node. param_groups: used as
    they are instead of `model`, without STAGED_LR.
    UserError: unknown name, or values that the optimiser refuses. WrongType: STAGED_LR asks for layers, but `model` is
    not a module.
    """
    check_availability(optim_cfg.NAME, AVAI_OPTIMS, "OPTIM.NAME")
    if param_groups is not None and optim_cfg.STAGED_LR:
        warnings.warn("STAGED_LR is ignored, because param_groups is given", stacklevel=2)
    elif optim_cfg.STAGED_LR:
        param_groups = staged_groups(model, optim_cfg)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    kind, options = _kind_and_options(optim_cfg)
    try:
        return kind(param_groups, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **options)
    except ValueError as error:  # a value out of range, or nothing to optimise
        raise UserError(f"OPTIM: {error}") from error


def _kind_and_options(optim_cfg):
    betas, momentum = {"betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)}, {"momentum": optim_cfg.MOMENTUM}
    sgd = {"dampening": optim_cfg.SGD_DAMPNING, "nesterov": optim_cfg.SGD_NESTEROV}
    return {
        "adam": (torch.optim.Adam, betas),
        "amsgrad": (torch.optim.Adam, betas | {"amsgrad": True}),
        "adamw": (torch.optim.AdamW, betas),
        "radam": (RAdam, betas),
        "rmsprop": (torch.optim.RMSprop, momentum | {"alpha": optim_cfg.RMSPROP_ALPHA}),
        "sgd": (torch.optim.SGD, momentum | sgd),
    }[optim_cfg.NAME]


def staged_groups(model: Model, optim_cfg: CN) -> list[dict]:
    """Two groups: all else at LR * BASE_LR_MULT, then the children and parameters in NEW_LAYERS at LR.
    WrongType: `model` is not a module."""
    if not isinstance(model, nn.Module):
        raise WrongType(f"STAGED_LR needs a module with named layers, but got a {type(model).__name__}")
    model = model.module if isinstance(model, nn.DataParallel) else model
    names = {optim_cfg.NEW_LAYERS} if isinstance(optim_cfg.NEW_LAYERS, str) else set(optim_cfg.NEW_LAYERS)
    members = [(name, list(child.parameters())) for name, child in model.named_children()]
    members += [(name, [param]) for name, param in model.named_parameters(recurse=False)]
    unknown = names - {name for name, _ in members}
    if unknown or not names:
        warnings.warn(f"NEW_LAYERS names no layer of the model: {sorted(unknown)}", stacklevel=3)
    base = [param for name, params in members if name not in names for param in params]
    new = [param for name, params in members if name in names for param in params]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
