"""The losses of training: their sum, two that conflict, and what is printed and kept of them by batch and by epoch."""

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch

from dassl.utils import AverageMeter, MetricMeter, UserError, brief, get_logger

from .build import source_of


class NotFinite(UserError, FloatingPointError):
    """A loss or a weight is infinite or NaN."""


def total_loss(losses: Mapping[str, torch.Tensor], trainer: type) -> torch.Tensor:
    """The sum of {name: scalar}. UserError, with class and file, for anything else, or what depends on no weight."""
    what = ""
    if not isinstance(losses, Mapping) or not losses:
        what = f"a {type(losses).__name__}: {brief(losses)}"
    elif odd := [name for name, value in losses.items() if not _scalar(value)]:
        what = f"{odd[0]} as {brief(losses[odd[0]])}"
    elif not getattr(total := sum(losses.values()), "requires_grad", False):
        what = "losses that depend on no trained weight (detached, or made under no_grad)"
    if what:
        raise UserError(f"{source_of(trainer)}: losses() gave {what}; expected {{name: scalar tensor}}")
    return total  # type: ignore[return-value]  # the sum of nothing, 0, has no gradient


def _scalar(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def project_conflicting(grad_a: torch.Tensor, grad_b: torch.Tensor, lambda_: float = 1.0) -> torch.Tensor:
    """`grad_a` without `lambda_` times its part along `grad_b`, if the two point apart; else `grad_a`.

    Both have one shape; their angle is taken over the whole tensor. A zero `grad_b` changes nothing.
    """
    norm = torch.linalg.vector_norm(grad_b)
    if norm == 0:
        return grad_a
    direction = grad_b / norm
    along = torch.sum(grad_a * direction)
    return grad_a - lambda_ * along * direction if along < 0 else grad_a


class EpochLog:
    """Means and times of an epoch's batches, printed every TRAIN.PRINT_FREQ and written for TensorBoard."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses, self._batch_time, self._data_time = MetricMeter(), AverageMeter(), AverageMeter()

    def waiting(self) -> None:
        """From now on, for a batch."""
        self._since = time.time()

    def drawn(self) -> None:
        """The batch is there."""
        self._data_time.update(time.time() - self._since)

    def done(self, losses: dict | None) -> None:
        """A step was made on it."""
        trainer = self.trainer
        self.losses.update(losses)
        self._batch_time.update(time.time() - self._since)
        every, batch = trainer.cfg.TRAIN.PRINT_FREQ, trainer.batch_idx + 1
        if batch % every == 0 or trainer.num_batches < every:
            get_logger().info(self._line(batch))
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in self.losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        self.waiting()

    def _line(self, batch: int) -> str:
        trainer, clock, data = self.trainer, self._batch_time, self._data_time
        left = trainer.num_batches - batch + (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        return (
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{batch}/{trainer.num_batches}] "
            f"time {clock.val:.3f} ({clock.avg:.3f}) data {data.val:.3f} ({data.avg:.3f}) "
            f"{self.losses} lr {trainer.get_current_lr():.4e} eta {timedelta(seconds=int(clock.avg * left))}"
        )

    def end(self) -> None:
        """Keep the means in the trainer's history."""
        means = {name: meter.avg for name, meter in self.losses.meters.items()}
        self.trainer._history = recorded(self.trainer._history, self.trainer.epoch + 1, means)


def recorded(history: list[dict], epoch: int, values: Mapping[str, float]) -> list[dict]:
    """[{"epoch": from 1, name: mean over its batches, ...}, ...], rising, with {name: number} added to an epoch.

    Later epochs, of an earlier training, go. None stands for what is not finite, which JSON cannot hold.
    """
    before = [entry for entry in history if entry["epoch"] < epoch]
    entry = next((entry for entry in history if entry["epoch"] == epoch), {})
    finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    return [*before, {"epoch": epoch} | entry | finite | {"epoch": epoch}]
