"""TrainerBase: the models that a run trains, one step of them, their checkpoints, and the loop over epochs.

Layout on disk, for each registered name: `<folder>/<name>/model.pth.tar-<N>` (N epochs done),
`<folder>/<name>/model-best.pth.tar`, and `<folder>/<name>/checkpoint`, the name of the file written last.
"""

import contextlib
import os
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from yacs.config import CfgNode as CN

from dassl.utils import UserError, get_logger, tolist_if_not
from dassl.utils.distributed import is_main
from dassl.utils.moved import OldMethods
from dassl.utils.progress import progress
from dassl.utils.torchtools import drop_token_buffers, load_weights, resume_from_checkpoint, save_checkpoint

from .build import source_of
from .checkpoint import find_model, load_exactly
from .losses import BAD_LOSS, NotFinite, project_conflicting
from .signals import defer_sigterm

log = get_logger()

EPOCHS = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} epochs [{elapsed}<{remaining}]"
Names = str | list[str] | None  # of registered models; None stands for all


def dataset_of(trainer: object) -> Any:
    """A trainer's data set; None for one that has none, as one that only predicts."""
    return getattr(getattr(trainer, "dm", None), "dataset", None)


class TrainerBase(OldMethods):
    """Base class of trainers. A subclass registers models and says what an epoch and a test are."""

    # what a subclass sets
    cfg: CN
    device: torch.device
    output_dir: str
    batch_idx: int
    num_batches: int
    _bar: Any = None  # of the epochs, while they run
    _epoch_log: Any = None  # of an epoch whose losses are not read in each step

    def __init__(self) -> None:
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self._progress: Any = None  # of a SimpleTrainer: by what it resumes
        self._loaded: tuple | None = None  # (file name, checkpoint's epoch, its validation result) of load_model
        self._files: list[str] = []  # that it read

    _epoch = 0

    @property
    def epoch(self) -> int:
        """Index of the epoch. Whoever sets it: the samplers learn which augmented views are its own."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for loader in [part for part in vars(self).values() if isinstance(part, DataLoader)]:
            sampler: Any = getattr(loader if loader.batch_sampler is None else loader.batch_sampler, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    # Registered models

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim: Optimizer | None = None, sched: Any = None
    ) -> None:
        """Hand a module to the engine: it is switched, stepped, saved and loaded under `name`.

        Without an optimizer it is never stepped; without a scheduler its learning rate stays.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot assign model before super().__init__() call")
        if name in self._models:
            raise AssertionError(f"Found duplicate model names: {name}")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Registered names, or `names` (one or a list) if all of them are registered -> list."""
        if names is None:
            return list(self._models)
        chosen = tolist_if_not(names)
        for name in chosen:
            if name not in self._models:
                raise AssertionError(f"No model is registered as {name!r}; there are {list(self._models)}")
        return chosen

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch registered models to train, or to test (or eval, the same)."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write every registered model after epoch index `epoch`; val_result: percent. Of several processes the main
        one writes. NotFinite: a weight is infinite or NaN; WriteFailed leaves earlier files whole."""
        self.check_finite()
        if not is_main():
            return
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": None if val_result is None else float(val_result),
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Load what the pointer file of each model's folder names -> epoch to go on with, 0 without one."""
        names = self.get_model_names()
        folders = [os.path.join(directory, name) for name in names]
        if not names or not all(os.path.isfile(os.path.join(folder, "checkpoint")) for folder in folders):
            log.info("No checkpoint found, train from scratch")
            return 0
        log.info(f"Found checkpoint at {directory} (will resume training)")
        epochs = [
            resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
            for name, folder in zip(names, folders, strict=True)
        ]
        return epochs[-1]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every registered model from `directory`: the one after `epoch` epochs, or else the best one.

        Where no best one was kept, the one with most epochs counts. `directory` may also be a model's folder, or a
        file (see `find_model`).
        MissingFile: a file is not there; says what is. UserError: it does not fit the model.
        """
        if not directory:
            log.info(
                "Note that load_model() is skipped as no pretrained model is given "
                "(ignore this if it's done on purpose)"
            )
            return
        paths = {name: find_model(directory, name, epoch) for name in self.get_model_names()}
        for name, path in paths.items():
            state, reached, result = load_weights(path)
            self._load_weights(name, path, state)
            shown = "" if result is None else f", val_result={result:.2f}"
            log.info(f"Load {path} to {name} (epoch={reached}{shown})")
            self._loaded = os.path.basename(path), reached, result
        self._files = list(paths.values())

    def _load_weights(self, name, path, state_dict):
        load_exactly(self._models[name], name, path, state_dict, self.drop_keys)

    def drop_keys(self, state_dict: dict) -> dict:
        """Hook: remove from `state_dict`, in place, what is made anew and not loaded; returns it.

        Default: the buffers that prompt learners make of the class names.
        """
        return drop_token_buffers(state_dict)

    # TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Open the TensorBoard writer, once, in the main process."""
        if self._writer is None and is_main():
            from torch.utils.tensorboard import SummaryWriter  # about a second, so not at import

            log.debug(f"Initialize tensorboard (log_dir={log_dir})")
            try:
                self._writer = SummaryWriter(log_dir=log_dir)
            except UnicodeEncodeError:
                log.info(f"No curves for TensorBoard, which takes no folder whose name is no UTF-8: {log_dir}")

    def close_writer(self) -> None:
        """Close the TensorBoard writer, if there is one."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take
                self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, value: float | Tensor, global_step: int | None = None) -> None:
        """One TensorBoard point; nothing without a writer, or once the disk is full."""
        if self._writer is not None:
            try:
                self._writer.add_scalar(tag, value, global_step)
            except OSError:
                self.close_writer()

    # The loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """The definition of training, epochs by index. `before_train` may move `start_epoch`: that is a resumed run."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        if self._progress:
            self._progress.begin()
        left = self.max_epoch - self.start_epoch
        held = self._progress.saving_held() if self._progress else contextlib.nullcontext()
        with progress(what="training", total=left, bar_format=EPOCHS) as self._bar, held:
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.before_epoch()
                self.run_epoch()
                with defer_sigterm(self._progress and self._progress.save):  # it may come when that is done
                    self.after_epoch()
                    if self._progress:
                        self._progress.save()
                self._bar.update(epoch + 1 - self.start_epoch - self._bar.n)
        self.after_train()
        if self._progress:
            self._progress.end()

    def before_train(self) -> None:
        """Hook, as those below: nothing by default."""

    after_train = before_epoch = after_epoch = before_train

    def run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Hook, as those below, which a subclass that calls them defines."""
        raise NotImplementedError

    test = parse_batch_train = parse_batch_test = forward_backward = model_inference = run_epoch

    # One step

    def optimizers(self, names: Names = None) -> list[Optimizer]:
        """Optimizers of the registered models that have one -> list."""
        optims = (self._optims[name] for name in self.get_model_names(names))
        return [optim for optim in optims if optim is not None]

    def get_current_lr(self, names: Names = None) -> float:
        """Learning rate of the first parameter group that is stepped; 0.0 if none is."""
        return next((optim.param_groups[0]["lr"] for optim in self.optimizers(names)), 0.0)

    def update_lr(self, names: Names = None) -> None:
        """Step the schedulers of the registered models, after an epoch."""
        self._step_schedulers(names, per_step=False)

    def update_step_lr(self, names: Names = None) -> None:
        """Step those schedulers that go by optimiser steps."""
        self._step_schedulers(names, per_step=True)

    def _step_schedulers(self, names, per_step):
        for name in self.get_model_names(names):
            sched = self._scheds[name]
            if sched is not None and getattr(sched, "per_step", False) == per_step:
                sched.step()

    def model_zero_grad(self, names: Names = None) -> None:
        """Forget the gradients of what these models' optimizers step."""
        for optim in self.optimizers(names):
            optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Backward pass of a scalar. NotFinite for one that is not; UserError for one that depends on no weight."""
        self.detect_anomaly(loss)
        if not loss.requires_grad:
            raise UserError(f"{source_of(type(self))}: its loss depends on no trained weight")
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Step these models' optimizers."""
        for optim in self.optimizers(names):
            optim.step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Zero gradients, backward of a scalar, step. Raises as `model_backward`."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: Tensor, loss_b: Tensor, lambda_: float = 1, names: Names = None
    ) -> None:
        """ProGrad (Zhu et al., arXiv 2205.14865): a step on `loss_a` that does not undo `loss_b`, both scalars.

        For each parameter tensor whose two gradients point apart, the part of a's gradient along b's
        is taken away, times `lambda_`.
        """
        groups = [group for optim in self.optimizers(names) for group in optim.param_groups]
        params = [param for group in groups for param in group["params"]]
        self.model_zero_grad(names)
        self.detect_anomaly(loss_b)
        loss_b.backward(retain_graph=True)
        kept = [None if p.grad is None else p.grad.clone() for p in params]
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for param, grad_b in zip(params, kept, strict=True):
            if param.grad is not None and grad_b is not None:
                param.grad = project_conflicting(param.grad, grad_b, lambda_)
        self.model_update(names)

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise NotFinite (a FloatingPointError), with place and last checkpoint, unless `loss` is finite; in an epoch
        on a GPU, once its losses are read."""
        if self._epoch_log is not None:
            self._epoch_log.note(loss)
        elif not torch.isfinite(loss).all():
            self._anomaly(BAD_LOSS, f", batch {self.batch_idx + 1}" if hasattr(self, "batch_idx") else "")

    def pass_over_single(self, error: ValueError) -> None:
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

    def check_finite(self) -> None:
        """Raise NotFinite if a trained weight, or a loss yet to be read, is not finite: that is not worth keeping."""
        if self._epoch_log is not None:
            self._epoch_log.check()
        models = [(name, self._models[name].named_parameters()) for name in self.get_model_names()]
        weights = {f"{key} of {name}": p for name, params in models for key, p in params if p.requires_grad}
        finite = [torch.isfinite(weight).all() for weight in weights.values()]
        read = torch.stack([fine.to(finite[0].device) for fine in finite]).tolist() if finite else []  # waits once
        if not all(read):
            self._anomaly(f"Weight {list(weights)[read.index(False)]} is infinite or NaN!")

    def _anomaly(self, what, place=""):
        raise NotFinite(f"{what} (epoch {self.epoch + 1}{place}; last good checkpoint: {self.last_checkpoint()})")

    def last_checkpoint(self) -> str:
        """Path of the newest file that training can go on from, or "none"."""
        return self._progress.last_checkpoint() if self._progress else "none"
