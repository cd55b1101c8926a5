"""SimpleTrainer, and TrainerX and TrainerXU: an epoch over labelled batches, or labelled and unlabelled ones in step.

The short way to a method is `losses(batch) -> {name: scalar}`: the engine sums, scales, steps and logs. A
trainer in Dassl's own style overrides `forward_backward` and does all this itself, the scheduler included.
"""

import os.path as osp
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode as CN

from dassl.config import KEYS, Keys, build_node, complete
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import MissingFile, UserError, check_availability, count_num_param, get_logger, load_pretrained_weights
from dassl.utils.device import choose_device
from dassl.utils.distributed import average_gradients, barrier, of_all, world_size
from dassl.utils.late import forwarding

from .base import TrainerBase, dataset_of
from .build import config_nodes
from .checkpoint import BEST
from .distributed import batch_share, start_epoch_together
from .evaluation import evaluate, keep_if_best, write_outputs
from .losses import EpochLog, total_loss
from .network import SimpleNet
from .precision import Precision
from .results import trained_facts
from .resume import ResumeState
from .signals import StopFlag, defer_sigterm, stop

log = get_logger()

# what Dassl's module imports beside these, and others import from it
__getattr__ = forwarding(
    __name__,
    "collections:OrderedDict datetime json torch:nn torch.utils.tensorboard:SummaryWriter tqdm:tqdm",
    "dassl.modeling:build_backbone dassl.modeling:build_head dassl.utils:AverageMeter dassl.utils:MetricMeter",
    "dassl.utils:load_checkpoint dassl.utils:mkdir_if_missing dassl.utils:resume_from_checkpoint",
    "dassl.utils:save_checkpoint dassl.utils:tolist_if_not",
)


class SimpleTrainer(TrainerBase):
    """A trainer of one config. Members that a subclass may override: see the methods marked Hook.

    Attributes: cfg, device, epoch (index), max_epoch, output_dir, dm (data), train_loader_x, train_loader_u,
    val_loader, test_loader, num_classes, lab2cname, evaluator, best_result, precision.
    """

    CONFIG = ""  # name of this class's node below cfg.TRAINER
    KEYS: Keys = {}  # that node's keys: {"NAME": Key(default, meaning, ...)}
    needs_checkpoint = True  # False: can be evaluated without a trained model
    bound_to_classes = ""  # why the model knows no class names but its own; empty: it takes any
    held_keys: tuple[str, ...] = ()  # config keys that a trained model is made with, and that none of its tensors shows
    kept_keys: tuple[str, ...] = ()  # config keys that may not change where a run is resumed under another config
    unnamed_keys: tuple[str, ...] = ()  # config keys of where a run stands, not what it learns: not in a preset's name
    model: Any  # what `build_model` makes
    trained: dict = {}  # what its own folder says of the model that is evaluated; see trained_facts

    def __init__(self, cfg: CN) -> None:
        super().__init__()
        self.check_cfg(complete(cfg))
        if cfg.MODEL.INIT_WEIGHTS and not osp.exists(cfg.MODEL.INIT_WEIGHTS):
            raise MissingFile(f'MODEL.INIT_WEIGHTS: nothing at "{cfg.MODEL.INIT_WEIGHTS}"')
        for key in ("FINAL_MODEL", "SPLIT"):
            check_availability(cfg.TEST[key], KEYS[f"TEST.{key}"].available, f"TEST.{key}")
        self.device = choose_device(cfg.USE_CUDA)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.cfg, self.output_dir = cfg, cfg.OUTPUT_DIR
        self.step_metrics = {}
        self.precision = Precision(self.precision_mode(), self.device)
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf
        self._history = []  # of `recorded`; resume.pt holds it
        self._progress = ResumeState(self)

    # Hooks

    @classmethod
    def default_config(cls) -> CN:
        """Hook: the keys of cfg.TRAINER.<CONFIG> with their defaults -> CfgNode. By default those of KEYS."""
        return build_node(cls.KEYS)

    def check_cfg(self, cfg: CN) -> None:
        """Hook: refuse values that do not go together; `self.cfg` is not set yet."""

    def precision_mode(self) -> str:
        """Hook: fp32, fp16, amp or bf16; by default the key PREC of the trainer's node, or of its base classes'."""
        nodes = (self.cfg.TRAINER.get(node, {}) for node, _ in reversed(config_nodes(type(self))))
        return next((node.PREC for node in nodes if "PREC" in node), "fp32")

    def metadata(self) -> dict:
        """Hook: what results.json should say of this run beside the engine's own fields -> dict."""
        return {}

    def trained_facts(self, folder: str) -> dict:
        """Hook: what results.json should say of the trained model in `folder` that this run evaluates -> dict."""
        return trained_facts(folder, self)

    def build_data_loader(self) -> None:
        """Hook: set the loaders and what follows from the data set."""
        dm = self.build_data_manager()
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_data_manager(self) -> DataManager:
        """Hook: the data set with its transforms and loaders."""
        return DataManager(self.cfg)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch of `train_loader_x`."""
        return -(-len(self.train_loader_x) // max(1, self.cfg.TRAIN.ACCUMULATE))

    def build_model(self) -> None:
        """Hook: build and register what is trained. Default: SimpleNet, registered as "model"."""
        cfg = self.cfg
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        log.debug(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def model_inference(self, input: Any) -> torch.Tensor:
        """Hook: logits (B, C) of images (B, 3, H, W)."""
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Any, torch.Tensor]:
        """Hook: (what `model_inference` takes, labels (B,)), on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    # Training

    def train(self) -> None:  # type: ignore[override]  # as in Dassl: its epochs are the config's
        """Train, test, and leave checkpoints in `output_dir`; see TrainerBase.train."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Hook: take up an interrupted run, open the TensorBoard writer. UserError for one that does not fit."""
        self.start_epoch = self._progress.resume()
        self.epoch = max(self.start_epoch - 1, 0)
        if self.start_epoch >= self.max_epoch and (self.cfg.RESUME or not self.max_epoch):
            done, asked = self.start_epoch, self.max_epoch
            log.info(f"Nothing is left to train: {done} epochs are done, OPTIM.MAX_EPOCH is {asked}")
            if self.chooses_best() and self.best_result == -np.inf:
                self.save_model(done - 1, self.output_dir, model_name=BEST)
            self.save_model(done - 1, self.output_dir)
        if self.chooses_best() and not self.has_validation():
            log.warning("TEST.FINAL_MODEL is best_val, but the data set has no validation images: it is the last")
        self.init_writer(osp.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_epoch(self) -> None:
        """Hook: validate, keep the best model, write a checkpoint where one is due."""
        last = self.epoch + 1 == self.max_epoch
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.chooses_best() and self.has_validation():
            keep_if_best(self)
        elif self.chooses_best() and last:
            self.save_model(self.epoch, self.output_dir, model_name=BEST)
        if last or (every > 0 and (self.epoch + 1) % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Hook: test what TEST.FINAL_MODEL names, unless TEST.NO_TEST."""
        for words in ("Finish training", "Finished training"):  # upstream's end line, the fork's: scripts wait for one
            log.info(words)
        if not self.cfg.TEST.NO_TEST:
            if self.chooses_best():
                log.info("Deploy the model with the best val performance")
                barrier()  # the main process has written it
                self.load_model(self.output_dir)
            else:
                log.info("Deploy the last-epoch model")
            self.test()
        log.info(f"Elapsed: {timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def chooses_best(self) -> bool:
        """Is the model chosen by validation? Not if nothing is to be tested."""
        return self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST

    def has_validation(self) -> bool:
        """Are there validation images, apart from the test images?"""
        return self.val_loader is not None and getattr(dataset_of(self), "has_val", True)

    # Evaluation

    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" or "test" (default TEST.SPLIT) -> the first result: accuracy in percent."""
        return evaluate(self, split)

    def output_test(self, split: str | None = None) -> float:
        """`test`, and OUTPUT_DIR/output.json: {image path: {"predict": logits, "gt": label}}."""
        return write_outputs(self, split)


class EpochTrainer(SimpleTrainer):
    """What both have in common. A subclass sets `num_batches` and yields the batches of an epoch."""

    _share = 1.0  # of the batch, that this process sees

    def epoch_batches(self) -> Iterator[tuple]:
        """Set `self.num_batches`; give an iterator of tuples, the arguments of `forward_backward`."""
        raise NotImplementedError

    def before_train(self) -> None:
        """UserError for what a trainer that steps by itself cannot do, or a precision that does not train here."""
        if type(self).forward_backward is EpochTrainer.forward_backward:
            self.precision.check_training()
        elif self.cfg.TRAIN.ACCUMULATE != 1 or world_size() > 1:
            name, what = type(self).__name__, "TRAIN.ACCUMULATE" if world_size() == 1 else "torchrun"
            raise UserError(f"{what} needs a trainer with losses(); {name} steps by itself")
        super().before_train()

    def run_epoch(self) -> None:
        """Batches of `epoch_batches`, a step or a part of one on each."""
        self.set_model_mode("train")
        start_epoch_together(self)
        epoch_log, flag = EpochLog(self), StopFlag(self.cfg.TRAIN.PRINT_FREQ)
        self.epoch = self.epoch  # the samplers may be others since it was set
        with defer_sigterm():
            batches = enumerate(self.epoch_batches())
            self._progress.pass_over(batches, epoch_log.losses)
            epoch_log.waiting()
            for self.batch_idx, batch in batches:
                self._share = batch_share(self)
                epoch_log.drawn()
                try:
                    epoch_log.done(self.forward_backward(*batch))
                except ValueError as error:
                    self.pass_over_single(error)
                    continue
                if self._bar is not None:
                    self._bar.update(1 / self.num_batches)
                done = self.batch_idx + 1
                last = done == self.num_batches
                if (done % self.cfg.TRAIN.ACCUMULATE == 0 or last) and flag.heard(last):
                    cls = type(self)  # with hooks of its own that begin an epoch, it is done again whole
                    if cls.run_epoch is EpochTrainer.run_epoch and cls.before_epoch is TrainerBase.before_epoch:
                        epoch_log.flush()
                        self._progress.save_within(epoch_log.losses)
                    stop()
        epoch_log.end()

    def losses(self, *batch: Any, **kwargs: Any) -> Mapping[str, torch.Tensor]:
        """Hook: {name: scalar tensor} of a batch; their sum is minimised. `log_metrics` adds to the printed line."""
        raise NotImplementedError(f"{type(self).__name__} defines neither losses() nor forward_backward()")

    def log_metrics(self, **metrics: float | torch.Tensor) -> None:
        """Print these numbers, or scalar tensors, with this batch's losses."""
        self.step_metrics.update(metrics)

    def forward_backward(self, *batch: Any) -> dict | None:
        """One batch, from losses to step -> what is printed.

        cfg.TRAIN.ACCUMULATE batches make one step on their mean loss; a shorter rest at the end of an epoch
        makes one too. The schedulers step after the last batch, those of `cosine_steps` after each step. Several
        processes step on the loss of all their parts of the batch, and print that.
        NotFinite: the loss is infinite or NaN. UserError: `losses` gave no scalars, or none that depends on a trained
        weight.
        """
        self.step_metrics = {}
        with self.precision.autocast():
            losses = self.losses(*batch)
        total = total_loss(losses, type(self))
        printed = {"loss": total, **losses, **self.step_metrics}
        if self._epoch_log is None:  # else once they are read
            (printed,) = of_all([printed], [self._share])
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

    def epoch_batches(self) -> Iterator[tuple]:
        """Each labelled batch once."""
        self.num_batches = len(self.train_loader_x)
        return ((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Images (B, 3, H, W), labels (B,) and domains (B,), on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain"))


class TrainerXU(EpochTrainer):
    """Trains on pairs of a labelled and an unlabelled batch; the shorter loader starts again when it ends."""

    def before_train(self) -> None:
        """UserError for a data set without unlabelled images."""
        if self.train_loader_u is None:
            name, data = type(self).__name__, self.cfg.DATASET.NAME
            raise UserError(f"{name} trains on unlabelled images too, and data set {data} has none (train_u)")
        super().before_train()

    def epoch_batches(self) -> Iterator[tuple]:
        """As TRAIN.COUNT_ITER says: so many as train_x has, train_u, or the shorter one."""
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        check_availability(self.cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        labelled, unlabelled = _restarting(self.train_loader_x), _restarting(self.train_loader_u)
        return ((next(labelled), next(unlabelled)) for _ in range(self.num_batches))

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[torch.Tensor, ...]:
        """Images and labels of the labelled batch, images of the other, on the device."""
        parts = batch_x["img"], batch_x["label"], batch_u["img"]
        return tuple(item.to(self.device, non_blocking=True) for item in parts)


def _restarting(loader):
    """Iterator over a loader that starts again at its end. It starts at once: the order of random draws."""
    return chain.from_iterable(chain([iter(loader)], repeat(loader)))
