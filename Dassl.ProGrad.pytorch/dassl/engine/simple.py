"""SimpleTrainer: data, model and evaluator from the config, validation, the final test, and resuming."""

import inspect
import os
import time
from datetime import timedelta

import numpy as np
import torch
from torch.utils.data import DataLoader

from dassl.config import Keys, build_node, complete
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    MissingFile,
    check_availability,
    count_num_param,
    get_logger,
    load_pretrained_weights,
    read_text,
    write_json,
)
from dassl.utils.distributed import barrier, gather, is_main
from dassl.utils.progress import progress

from .base import TrainerBase
from .checkpoint import BEST
from .distributed import evaluation_share
from .earlier import best_digests, check_best
from .network import SimpleNet
from .precision import Precision
from .results import trained_facts
from .resume import ResumeState

log = get_logger()

SPLITS = ("val", "test")
FINAL_MODELS = ("last_step", "best_val")


class SimpleTrainer(TrainerBase):
    """A trainer of one config. Members that a subclass may override: see the methods marked Hook.

    Attributes: cfg, device, epoch (index), max_epoch, output_dir, dm (data), train_loader_x, train_loader_u,
    val_loader, test_loader, num_classes, lab2cname, evaluator, best_result, precision.
    """

    CONFIG = ""  # name of this class's node below cfg.TRAINER
    KEYS: Keys = {}  # that node's keys: {"NAME": Key(default, meaning, ...)}
    needs_checkpoint = True  # False: can be evaluated without a trained model
    bound_to_classes = ""  # why the model knows no class names but its own; empty: it takes any
    held_keys = ()  # config keys that a trained model is made with, and that none of its tensors shows
    kept_keys = ()  # config keys that may not change where a run is resumed under another config
    trained = {}  # what its own folder says of the model that is evaluated; see trained_facts

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(complete(cfg))
        if cfg.MODEL.INIT_WEIGHTS and not os.path.exists(cfg.MODEL.INIT_WEIGHTS):
            raise MissingFile(f'MODEL.INIT_WEIGHTS: nothing at "{cfg.MODEL.INIT_WEIGHTS}"')
        check_availability(cfg.TEST.FINAL_MODEL, FINAL_MODELS, "TEST.FINAL_MODEL")
        check_availability(cfg.TEST.SPLIT, SPLITS, "TEST.SPLIT")
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.step_metrics = {}
        self.precision = Precision(self.precision_mode(), self.device)
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf
        self._history = []  # of `recorded`; resume.pt holds it
        self._progress = ResumeState(self)

    @property
    def epoch(self):
        """Index of the epoch. Whoever sets it: the samplers learn which augmented views are its own."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch):
        self._epoch = epoch
        for loader in [part for part in vars(self).values() if isinstance(part, DataLoader)]:
            sampler = getattr(loader if loader.batch_sampler is None else loader.batch_sampler, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    # Hooks

    @classmethod
    def default_config(cls):
        """Hook: the keys of cfg.TRAINER.<CONFIG> with their defaults -> CfgNode. By default those of KEYS."""
        return build_node(cls.KEYS)

    def check_cfg(self, cfg):
        """Hook: refuse values that do not go together; `self.cfg` is not set yet."""

    def precision_mode(self):
        """Hook: fp32, fp16, amp or bf16; by default the key PREC of the trainer's node."""
        node = self.cfg.TRAINER.get(self.CONFIG, {}) if self.CONFIG else {}
        return node.get("PREC", "fp32")

    def metadata(self):
        """Hook: what results.json should say of this run beside the engine's own fields -> dict."""
        return {}

    def trained_facts(self, folder):
        """Hook: what results.json should say of the trained model in `folder` that this run evaluates -> dict."""
        return trained_facts(folder, self)

    def build_data_loader(self):
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

    def build_data_manager(self):
        """Hook: the data set with its transforms and loaders."""
        return DataManager(self.cfg)

    @property
    def steps_per_epoch(self):
        """Optimiser steps of an epoch of `train_loader_x`."""
        return -(-len(self.train_loader_x) // max(1, self.cfg.TRAIN.ACCUMULATE))

    def build_model(self):
        """Hook: build and register what is trained. Default: SimpleNet, registered as "model"."""
        cfg = self.cfg
        log.debug("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        log.debug(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def model_inference(self, input):
        """Hook: logits (B, C)."""
        return self.model(input)

    def parse_batch_test(self, batch):
        """Hook: (what `model_inference` takes, labels (B,)), on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    # Training

    def train(self):
        """Train, test, and leave checkpoints in `output_dir`; see TrainerBase.train."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        self.start_epoch = self._progress.resume()
        self.epoch = max(self.start_epoch - 1, 0)
        if self.start_epoch >= self.max_epoch and (self.cfg.RESUME or not self.max_epoch):
            done, asked = self.start_epoch, self.max_epoch
            log.info(f"Nothing is left to train: {done} epochs are done, OPTIM.MAX_EPOCH is {asked}")
            if self.chooses_best() and self.best_result == -np.inf:
                self.save_model(done - 1, self.output_dir, model_name=BEST)
            self.save_model(done - 1, self.output_dir)
        if self.chooses_best() and not self.has_validation():
            log.warning(
                "Warning: TEST.FINAL_MODEL is best_val, but this data set has no validation images. "
                "The test set must not choose: the last epoch's model counts as the best"
            )
        self.init_writer(os.path.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_epoch(self):
        last = self.epoch + 1 == self.max_epoch
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.chooses_best() and self.has_validation():
            self._keep_if_best()
        elif self.chooses_best() and last:
            self.save_model(self.epoch, self.output_dir, model_name=BEST)
        if last or (every > 0 and (self.epoch + 1) % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def _keep_if_best(self):
        result = self.test(split="val")
        self._history = recorded(self._history, self.epoch + 1, {"val_accuracy": result})
        first = self.cfg.OPTIM.WARMUP_EPOCH if self.cfg.TEST.SKIP_WARMUP else 0
        if result > self.best_result and self.epoch >= min(first, self.max_epoch - 1):  # the last is always one
            self.best_result = result
            takes = inspect.signature(self.save_model).parameters.keys()
            more = {"val_result": result} if takes & {"val_result", "kwargs"} else {}  # the fork's takes neither
            self.save_model(self.epoch, self.output_dir, **more, model_name=BEST)
            self._progress.best = best_digests(self)
        self.evaluator.reset()  # the run's results are those of the final test
        self.evaluator.results = None

    def after_train(self):
        log.info("Finish training")  # upstream's end line, then the fork's: scripts wait for one or the other
        log.info("Finished training")
        if not self.cfg.TEST.NO_TEST:
            if self.chooses_best():
                log.info("Deploy the model with the best val performance")
                barrier()  # the main process has written it
                check_best(self, self._progress.best)
                self.load_model(self.output_dir)
            else:
                log.info("Deploy the last-epoch model")
            self.test()
        log.info(f"Elapsed: {timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    def chooses_best(self):
        """Is the model chosen by validation? Not if nothing is to be tested."""
        return self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST

    def has_validation(self):
        """Are there validation images, apart from the test images?"""
        own = getattr(getattr(getattr(self, "dm", None), "dataset", None), "has_val", True)
        return self.val_loader is not None and own

    # Interruption

    def start_progress(self):
        self._progress.begin()

    def save_progress(self):
        self._progress.save()

    def end_progress(self):
        self._progress.end()

    def last_checkpoint(self):
        """Path of the newest file that training can go on from, or "none" -> str."""
        candidates = [self._progress.path] if self._progress.holds else []
        for name in self._models:
            pointer = os.path.join(self.output_dir, name, "checkpoint")
            if os.path.isfile(pointer):
                candidates.append(os.path.join(self.output_dir, name, read_text(pointer).partition("\n")[0].strip()))
        return next((path for path in candidates if os.path.isfile(path)), "none")

    # Evaluation

    def test(self, split=None):
        """Evaluate on "val" or "test" (default TEST.SPLIT) -> the first result: accuracy in percent."""
        return self._evaluate(split)

    def output_test(self, split=None):
        """`test`, and OUTPUT_DIR/output.json: {image path: {"predict": logits, "gt": label}}."""
        rows = {}

        def keep(batch, output, label):
            for path, logits, truth in zip(batch["impath"], output.tolist(), label.tolist(), strict=True):
                rows[path] = {"predict": logits, "gt": truth}

        result = self._evaluate(split, keep)
        rows = {path: row for part in gather(rows) for path, row in part.items()}
        if is_main():
            write_json(rows, os.path.join(self.output_dir, "output.json"))
        return result

    @torch.no_grad()
    def _evaluate(self, split, observe=None):
        """One pass over a split; `observe(batch, output, label)` sees each batch that this process evaluates."""
        split = split or self.cfg.TEST.SPLIT
        check_availability(split, SPLITS, "A split to evaluate on")
        self.set_model_mode("eval")
        self.evaluator.reset()
        if split == "val" and self.val_loader is None:
            split = "test"
        log.info(f"Evaluate on the *{split}* set")
        loader = self.val_loader if split == "val" else self.test_loader
        share = evaluation_share(self, loader)
        batches = loader if share is None else share
        for batch in progress(batches, f"evaluating on {split}"):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            self.evaluator.process(output, label)
            if observe is not None:
                observe(batch, output, label)
        if share is not None:
            self.evaluator.gather()
        results = self.evaluator.evaluate()
        self.evaluator.results = results
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def get_current_lr(self, names=None):
        """Learning rate of the first parameter group that is stepped; 0.0 if none is."""
        return next((optim.param_groups[0]["lr"] for optim in self.optimizers(names)), 0.0)


def recorded(history, epoch, values):
    """[{"epoch": from 1, name: mean over its batches, ...}, ...], rising, with {name: number} added to an epoch.

    Later epochs, of an earlier training, go. None stands for what is not finite, which JSON cannot hold.
    """
    before = [entry for entry in history if entry["epoch"] < epoch]
    entry = next((entry for entry in history if entry["epoch"] == epoch), {})
    values = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
    return [*before, {"epoch": epoch} | entry | values | {"epoch": epoch}]
