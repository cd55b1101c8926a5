"""`cfg.OPTIM` to learning-rate schedule. One `step()` an epoch, by the trainers' habit. w: warm-up epochs.

Only `cosine_steps` goes by optimiser steps; it says so by its attribute `per_step`.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode as CN

from dassl.utils import UserError, WrongType, check_availability, get_logger

Rate = float | Tensor  # as torch has it
AVAI_SCHEDS = ["single_step", "multi_step", "cosine", "constant", "cosine_steps"]


class _WarmupScheduler(LRScheduler):
    """Own rates in epochs 0 .. w - 1, the base rates in epoch w, from then on those of `successor`."""

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self, base_lr: Rate) -> Rate:
        """Rate of a group in the warm-up epoch `self.last_epoch`."""
        raise NotImplementedError

    def get_lr(self) -> list[Rate]:
        if self.last_epoch >= self.warmup_epoch:
            return list(self.base_lrs)
        return [self.warmup_lr(base_lr) for base_lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch; `last_epoch` stays at w once the successor has taken over."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: such a file loads with `weights_only=True`."""
        state = super().state_dict()
        del state["successor"]
        state["successor_state"] = self.successor.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore this schedule and its successor.

        Also takes a state that holds the successor itself, as older files do: its counter and last rates are
        copied, the object (which is bound to an optimiser of the past) is dropped. Unknown keys are ignored.
        """
        names = self.__dict__.keys() - {"optimizer", "successor"}
        self.__dict__.update({key: value for key, value in state_dict.items() if key in names})
        if "successor_state" in state_dict:
            self.successor.load_state_dict(state_dict["successor_state"])
        elif "successor" in state_dict:
            old, new = state_dict["successor"], self.successor
            try:
                new.last_epoch, new._last_lr = int(old.last_epoch), [float(lr) for lr in old._last_lr]
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"The scheduler in the checkpoint cannot be resumed: {error}") from error
            new._step_count = new.last_epoch + 1


class ConstantWarmupScheduler(_WarmupScheduler):
    """The rate `cons_lr` in every group for `warmup_epoch` epochs, then `successor`."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float, last_epoch: int = -1
    ):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: Rate) -> Rate:
        return self.cons_lr


class LinearWarmupScheduler(_WarmupScheduler):
    """`min_lr` in epoch 0, base rate times e / w in epoch e < w, then `successor`."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float, last_epoch: int = -1
    ):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base_lr: Rate) -> Rate:
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr


class CosineSteps(LRScheduler):
    """Linear from base rate / w to the base rate over w optimiser steps, then half a cosine down to 0 at `total`.

    The schedule of WiSE-FT (arXiv 2109.01903). A run of fewer than w steps ends in its warm-up.
    """

    per_step = True

    def __init__(self, optimizer: Optimizer, total: int, warmup_steps: int = 0, last_epoch: int = -1):
        self.total, self.warmup_steps = total, warmup_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Rate]:
        step, w = self.last_epoch, self.warmup_steps
        if step < w:
            factor = (step + 1) / w
        else:
            done = min(1.0, (step - w) / max(1, self.total - w))
            factor = (1 + math.cos(math.pi * done)) / 2
        return [base_lr * factor for base_lr in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CN, steps_per_epoch: int | None = None) -> LRScheduler:
    """Schedule OPTIM.LR_SCHEDULER, behind a warm-up if OPTIM.WARMUP_EPOCH > 0.

    steps_per_epoch: optimiser steps of an epoch, for `cosine_steps`.
    UserError: unknown name of a schedule or of a warm-up; `cosine_steps` with a warm-up in epochs, or without
    `steps_per_epoch`. WrongType: STEPSIZE does not fit the schedule.
    """
    name, warmup, stepsize = optim_cfg.LR_SCHEDULER, optim_cfg.WARMUP_EPOCH, optim_cfg.STEPSIZE
    check_availability(name, AVAI_SCHEDS, "OPTIM.LR_SCHEDULER")
    if name == "cosine_steps":
        if warmup > 0:
            raise UserError(f"cosine_steps warms up by OPTIM.WARMUP_STEPS: set OPTIM.WARMUP_EPOCH from {warmup} to 0")
        if steps_per_epoch is None:
            raise UserError("cosine_steps needs the steps of an epoch, and this trainer does not give them: use cosine")
        return CosineSteps(optimizer, steps_per_epoch * optim_cfg.MAX_EPOCH, optim_cfg.WARMUP_STEPS)
    if warmup > 0:
        check_availability(optim_cfg.WARMUP_TYPE, ["constant", "linear"], "OPTIM.WARMUP_TYPE")
    scheduler: LRScheduler
    if name == "single_step":
        every = stepsize[-1] if isinstance(stepsize, list | tuple) else stepsize
        if not isinstance(every, int):
            raise WrongType(f"For single_step, STEPSIZE is expected to be an integer, but got {stepsize!r}")
        scheduler = StepLR(optimizer, every if every > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA)
    elif name == "multi_step":
        if not isinstance(stepsize, list | tuple):
            raise WrongType(f"For multi_step, STEPSIZE is expected to be a list, but got {stepsize!r}")
        scheduler = MultiStepLR(optimizer, list(stepsize), optim_cfg.GAMMA)
    elif name == "cosine":
        scheduler = CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)
    else:
        scheduler = ConstantLR(optimizer, factor=1.0)
    if warmup <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = warmup
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_MIN_LR)


def go_on(optimizer: Optimizer | None, scheduler: LRScheduler | None, state: Mapping | None, steps: int) -> None:
    """Go on from a run of another config: with its moments, at this config's rates after so many of its steps.

    Optimizer and scheduler are as they were built. state: of the earlier run's optimizer. All may be None.
    """
    if optimizer is not None and state is not None:
        groups = optimizer.state_dict()["param_groups"]
        if list(map(_kind, groups)) == list(map(_kind, state["param_groups"])):
            optimizer.load_state_dict({**state, "param_groups": groups})
        else:
            get_logger().info(f"{type(optimizer).__name__} starts anew: the earlier run had another optimizer")
    if scheduler is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps before the optimizer's
            for _ in range(steps):
                scheduler.step()


def _kind(group):
    """What tells apart the optimizers whose moments go by other names, or to other parameters."""
    names = "betas" in group, "alpha" in group, bool(group.get("momentum")), bool(group.get("amsgrad"))
    return *names, len(group["params"])
