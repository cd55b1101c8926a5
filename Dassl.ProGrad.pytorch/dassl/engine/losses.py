"""The losses of training: their sum, two that conflict, and what is printed and kept of them by batch and by epoch."""

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch

from dassl.utils import AverageMeter, MetricMeter, UserError, brief, get_logger
from dassl.utils.distributed import of_all, world_size

from .build import source_of

BAD_LOSS = "Loss is infinite or NaN!"


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
    direction = grad_b / torch.linalg.vector_norm(grad_b)
    along = torch.sum(grad_a * direction)  # not a number for a zero grad_b
    return torch.where(along < 0, grad_a - lambda_ * along * direction, grad_a)


class EpochLog:
    """Means and times of an epoch's batches, printed every TRAIN.PRINT_FREQ and written for TensorBoard.

    On a CPU each batch is read and checked at once. On another device, where reading waits, its numbers stay until
    PRINT_FREQ batches are done, or the epoch is, and come over together; the time of a batch is then their mean.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, device = trainer, trainer.device
        self.losses, self._batch_time, self._data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self._resumed = trainer.epoch == trainer.start_epoch > 0
        self._held: list[tuple] = []  # of batches that are not read: (number, rate, data time, share, values)
        trainer._epoch_log = None if device.type == "cpu" else self
        self._wide = torch.float32 if device.type == "mps" else torch.float64
        self._first_bad = torch.full((), -1, device=device)  # index of the first batch with a bad loss

    def waiting(self) -> None:
        """From now on, for a batch."""
        self._asked = time.time()
        if not self._held:
            self._since = self._asked

    def drawn(self) -> None:
        """The batch is there."""
        self._data_time.update(time.time() - self._asked)

    def note(self, loss: torch.Tensor) -> None:
        """Keep the batch's index, on the device, if it is the first whose loss is not finite."""
        bad = ~torch.isfinite(loss).all().to(self._first_bad.device) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self.trainer.batch_idx, self._first_bad)

    def done(self, losses: dict | None) -> None:
        """A step was made on it."""
        trainer, data, collects = self.trainer, self._data_time, self.trainer._epoch_log is self
        if collects:  # of tensors copies, for they may change
            if not isinstance(losses, dict):
                losses = self.losses.update(losses) or {}  # None adds nothing, what else it is is refused
            kept = {"device": trainer.device, "dtype": self._wide, "non_blocking": True, "copy": True}
            losses = {k: v.detach().to(**kept) if torch.is_tensor(v) else v for k, v in losses.items()}
        times = f"data {data.val:.3f} ({data.avg:.3f})"
        self._held.append((trainer.batch_idx + 1, trainer.get_current_lr(), times, trainer._share, losses))
        if not collects or (trainer.batch_idx + 1) % trainer.cfg.TRAIN.PRINT_FREQ == 0:
            self.flush()
        self.waiting()

    def flush(self) -> None:
        """Print and write all batches so far. NotFinite names the first one of them whose loss is not finite."""
        if not self._held:
            return
        trainer, every, count = self.trainer, self.trainer.cfg.TRAIN.PRINT_FREQ, len(self._held)
        *batches, shares, rows = zip(*self._held, strict=True)
        rows, bad = self._read(rows, shares) if trainer._epoch_log is self else (rows, -1)
        self._batch_time.update((time.time() - self._since) / count, count)
        self._held = []
        for batch, lr, data, row in zip(*batches, rows, strict=True):
            if 0 <= bad < batch:
                break
            self.losses.update(row)
            if batch % every == 0 or trainer.num_batches < every:
                get_logger().info(self._line(batch, lr, data))
            step = trainer.epoch * trainer.num_batches + batch - 1
            self._drop_points(step)
            for name, meter in self.losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", lr, step)
        self.check(bad)

    def _drop_points(self, step):
        """TensorBoard is to forget what the session that was killed wrote of steps that are done again."""
        if self._resumed and (writer := getattr(self.trainer._writer, "file_writer", None)):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        self._resumed = False

    def _read(self, rows, shares):
        """The numbers of whole batches, in one copy, and the index of the first bad batch; -1 for none."""
        tensors = [v.reshape(-1) for row in rows for v in row.values() if torch.is_tensor(v)]
        read = torch.cat([*tensors, self._first_bad.to(self._wide).reshape(1)]).cpu().split([*map(len, tensors), 1])
        parts, bad = iter(read), int(read[-1])
        rows = [{k: next(parts) if torch.is_tensor(v) else v for k, v in row.items()} for row in rows]
        if world_size() > 1:
            rows = of_all(rows, shares)
            told = zip(self._held, rows, strict=True)
            bad = next((number - 1 for (number, *_), row in told if not row["loss"].isfinite()), -1)
        return rows, bad

    def check(self, bad: int | None = None) -> None:
        """NotFinite where a loss of this process was not, read or not. bad: index of its batch, where that was read."""
        if (bad := int(self._first_bad) if bad is None else bad) >= 0:
            self.trainer._anomaly(BAD_LOSS, f", batch {bad + 1}")

    def _line(self, batch: int, lr: float, data: str) -> str:
        trainer, clock = self.trainer, self._batch_time
        left = trainer.num_batches - batch + (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        return (
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{batch}/{trainer.num_batches}] "
            f"time {clock.val:.3f} ({clock.avg:.3f}) {data} "
            f"{self.losses} lr {lr:.4e} eta {timedelta(seconds=int(clock.avg * left))}"
        )

    def end(self) -> None:
        """Read what is left, and keep the means in the trainer's history."""
        self.flush()
        self.trainer._epoch_log = None
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
