"""TrainerX and TrainerXU: an epoch over labelled batches, or over labelled and unlabelled ones in step.

The short way to a method is `losses(batch) -> {name: scalar}`: the engine sums, scales, steps and logs. A
trainer in Dassl's own style overrides `forward_backward` and does all this itself, the scheduler included.
"""

import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from itertools import chain, repeat

import torch

from dassl.utils import AverageMeter, MetricMeter, UserError, brief, check_availability, get_logger
from dassl.utils.distributed import average_gradients, world_size

from .build import source_of
from .distributed import batch_share, of_all, start_epoch_together, start_together
from .signals import defer_sigterm, should_stop, stop
from .simple import SimpleTrainer, recorded

log = get_logger()


class EpochTrainer(SimpleTrainer):
    """What both have in common. A subclass sets `num_batches` and yields the batches of an epoch."""

    _share = 1.0  # of the batch, that this process sees

    def epoch_batches(self):
        """Set `self.num_batches`; give an iterator of tuples, the arguments of `forward_backward`."""
        raise NotImplementedError

    def before_train(self):
        own_step = type(self).forward_backward is EpochTrainer.forward_backward
        if own_step:
            self.precision.check_training()
        elif self.cfg.TRAIN.ACCUMULATE != 1 or world_size() > 1:
            name, what = type(self).__name__, "TRAIN.ACCUMULATE" if world_size() == 1 else "torchrun"
            raise UserError(f"{what} needs a trainer with losses(); {name} steps by itself")
        if own_step and self.max_epoch:
            groups = [group for optim in self.optimizers() for group in optim.param_groups]
            if not any(param.requires_grad for group in groups for param in group["params"]):
                raise UserError(f"{source_of(type(self))} has nothing to train: no optimizer has a trainable parameter")
        super().before_train()

    def start_progress(self):
        start_together(self)
        super().start_progress()

    def run_epoch(self):
        self.set_model_mode("train")
        start_epoch_together(self)
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        clocks = self._scheduler_clocks()
        self.epoch = self.epoch  # the samplers may be others since it was set
        batches = enumerate(self.epoch_batches())
        resumed = self._progress.pass_over(batches, losses)
        end = time.time()
        with defer_sigterm():
            for batch_idx, batch in batches:
                self.batch_idx = batch_idx
                self._share = batch_share(self)
                data_time.update(time.time() - end)
                try:
                    losses.update(self.forward_backward(*batch))
                except ValueError as error:
                    self._pass_by(error)
                    continue
                batch_time.update(time.time() - end)
                every = self.cfg.TRAIN.PRINT_FREQ
                if (batch_idx + 1) % every == 0 or self.num_batches < every:
                    self._print_batch(losses, batch_time, data_time)
                self._write_batch(losses)
                if self._bar is not None:
                    self._bar.update(1 / self.num_batches)
                stepped = (batch_idx + 1) % self.cfg.TRAIN.ACCUMULATE == 0 or batch_idx + 1 == self.num_batches
                if stepped and should_stop():
                    self._progress.save_within(losses)
                    stop()
                end = time.time()

        means = {name: meter.avg for name, meter in losses.meters.items()}
        self._history = recorded(self._history, self.epoch + 1, means)
        if self.epoch == 0 and not resumed and clocks and clocks == self._scheduler_clocks():
            warnings.warn(
                "No scheduler was stepped in the first epoch: call self.update_lr() after its last batch, "
                "or the learning rate never changes",
                stacklevel=2,
            )

    def _pass_by(self, error):
        """Leave out a last batch of one image, which batch norms do not take. UserError for any other batch of one."""
        if "Expected more than 1 value per channel" not in str(error):
            raise error
        if self.batch_idx + 1 < self.num_batches or self.num_batches == 1:
            raise UserError(
                f"{source_of(type(self))} trains batch norms, which need two images a batch or more: "
                f"DATALOADER.TRAIN_X.BATCH_SIZE is {self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE}"
            ) from error
        log.info("The last batch has one image, which batch norms do not take: it is left out")
        self.update_lr()

    def _scheduler_clocks(self):
        return [sched.last_epoch for sched in self._scheds.values() if hasattr(sched, "last_epoch")]

    def _print_batch(self, losses, batch_time, data_time):
        left = self.num_batches - self.batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
        log.info(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
            f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {timedelta(seconds=int(batch_time.avg * left))}"
        )

    def _write_batch(self, losses):
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def losses(self, batch):
        """Hook: {name: scalar tensor} of a batch; their sum is minimised. `note` adds to the printed line."""
        raise NotImplementedError(f"{type(self).__name__} defines neither losses() nor forward_backward()")

    def _total(self, losses):
        """Their sum. UserError, with class and file, if `losses` gave something else than what it should."""
        what = ""
        if not isinstance(losses, Mapping) or not losses:
            what = f"a {type(losses).__name__}: {brief(losses)}"
        elif odd := [name for name, value in losses.items() if not _scalar(value)]:
            what = f"{odd[0]} as {brief(losses[odd[0]])}"
        elif not getattr(total := sum(losses.values()), "requires_grad", False):
            what = "losses that depend on no trained weight (detached, or made under no_grad)"
        if what:
            raise UserError(f"{source_of(type(self))}: losses() gave {what}; expected {{name: scalar tensor}}")
        return total

    def log_metrics(self, **metrics):
        """Print these numbers with this batch's losses."""
        self.step_metrics.update(metrics)

    def forward_backward(self, *batch):
        """One batch, from losses to step -> what is printed.

        cfg.TRAIN.ACCUMULATE batches make one step on their mean loss; a shorter rest at the end of an epoch
        makes one too. The schedulers step after the last batch, those of `cosine_steps` after each step. Several
        processes step on the loss of all their parts of the batch, and print that.
        """
        self.step_metrics = {}
        with self.precision.autocast():
            losses = self.losses(*batch)
        total = self._total(losses)
        printed = of_all({"loss": total, **losses, **self.step_metrics}, self._share)
        self.detect_anomaly(printed["loss"])
        first = self.batch_idx - self.batch_idx % self.cfg.TRAIN.ACCUMULATE
        size = max(1, min(self.cfg.TRAIN.ACCUMULATE, self.num_batches - first))
        if self.batch_idx == first:
            self.model_zero_grad()
        self.precision.backward(total * (self._share * world_size()) / size)
        if self.batch_idx + 1 == first + size:
            average_gradients(self.optimizers())
            self.precision.step(self.optimizers(), self.cfg.OPTIM.GRAD_CLIP)
            self.update_step_lr()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in printed.items()}


class TrainerX(EpochTrainer):
    """Trains on labelled batches."""

    def epoch_batches(self):
        self.num_batches = len(self.train_loader_x)
        return ((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch):
        """Images (B, 3, H, W), labels (B,) and domains (B,), on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(EpochTrainer):
    """Trains on pairs of a labelled and an unlabelled batch; the shorter loader starts again when it ends."""

    def before_train(self):
        if self.train_loader_u is None:
            name, data = type(self).__name__, self.cfg.DATASET.NAME
            raise UserError(f"{name} trains on unlabelled pictures too, and data set {data} has none (train_u)")
        super().before_train()

    def epoch_batches(self):
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        check_availability(self.cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        labelled, unlabelled = _restarting(self.train_loader_x), _restarting(self.train_loader_u)
        return ((next(labelled), next(unlabelled)) for _ in range(self.num_batches))

    def parse_batch_train(self, batch_x, batch_u):
        """Images and labels of the labelled batch, images of the other, on the device."""
        return tuple(item.to(self.device) for item in (batch_x["img"], batch_x["label"], batch_u["img"]))


def _restarting(loader):
    """Iterator over a loader that starts again at its end. It starts at once: the order of random draws."""
    return chain.from_iterable(chain([iter(loader)], repeat(loader)))


def _scalar(value):
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
