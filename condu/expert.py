"""Training one expert of a stream of tasks, and the keys of TRAINER.CONDU (ConDU, arXiv 2503.10705).

An expert is CLIP fine-tuned on one task, both towers or LoRA in them, always from the pretrained weights: it
does not depend on the tasks before it.
Letters: B images, C classes, L tokens, D joint width.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, check_input, compiled, cosine_logits
from dassl.config import Key, leaves, with_values
from dassl.data.samplers import IterationSampler
from dassl.data.shards import loader_like
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.precision import precision_key
from dassl.engine.recipe import recipe
from dassl.engine.results import images_seen
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, digest, get_logger, set_bn_to_eval, tensor_digest
from dassl.utils.distributed import is_main, rank, world_size

from .delta import SCALES
from .evaluation import LABELS
from .snapshot import ordered_loader, prompts_of, prototypes_of, task_of, text_vectors
from .state import SUFFIX, ExpertStore
from .tuning import MERGE_SPACES, SPACES, build_space
from .voting import MIN_TEMP, Space, Weighting

log = get_logger()

SCHEDULES = ("cosine_steps", "constant")

KEYS = {  # with the paper's values
    "STREAM": Key("", "folder of the stream's state; empty: OUTPUT_DIR/stream", path=True, role="incidental"),
    "EXPERTS": Key("", "store; empty: ConDU keeps none, ConDU_Expert in OUTPUT_DIR", path=True, role="incidental"),
    "HISTORY": Key(False, "keep the state of earlier sessions too", role="incidental"),
    "HALF": Key(False, "unified delta as bf16 on disk"),
    "SESSION": Key(-1, "number of this session; in evaluation the one to load; negative: any", role="evaluation"),
    "SPACE": Key("full", "what trains: full (both towers) or lora", choices=SPACES),
    "MERGE_SPACE": Key("factors", "what LoRA's experts are fused as", choices=MERGE_SPACES),
    "RANK": Key(64, "of LoRA", ge=1),
    "SCALE": Key("l1", "rule of the triggers' scales: l1 (paper), tensor_mean (released code), none", choices=SCALES),
    "ITERATIONS": Key(1000, "optimiser steps a task", ge=1, role="training"),
    "ROUND": Key(100, "optimiser steps between two resume points", ge=1, role="training"),
    "LR_OF": Key([], '"Task=rate" for tasks that do not train at OPTIM.LR', item=str, role="training"),
    "LABEL_SMOOTHING": Key(0.2, "of the cross-entropy", ge=0, lt=1, role="training"),
    "START": Key("", "expert to start from, FOLDER/TASK of a store; empty: none", path=True, role="training"),
    "VOTE.INCLUDE_PRETRAINED": Key(False, "does the pretrained model vote too?", role="evaluation"),
    "VOTE.K": Key(4, "experts that vote, the most similar ones", ge=1, role="evaluation"),
    "VOTE.WEIGHTING": Key("similarity", "of their votes", choices=get_args(Weighting), role="evaluation"),
    "VOTE.TEMP": Key(1.0, "of minmax", ge=MIN_TEMP, role="evaluation"),
    "VOTE.SPACE": Key("logits", "what is summed", choices=get_args(Space), role="evaluation"),
    "TASK_AGNOSTIC": Key(False, "evaluate known tasks by the vote too", role="evaluation"),
    "LABELS": Key("target", "classes of a vote: target, the data set's; union, all", choices=LABELS, role="evaluation"),
    "RESIDENT": Key(1, "experts kept in memory as weights, in evaluation", ge=1, role="incidental"),
    "CHUNK": Key(1024, "images decoded at once, in evaluation", ge=1, role="incidental"),
    "PREC": precision_key("fp32", ("fp32", "amp", "bf16")),
}


def learning_rates(pairs: Sequence[str]) -> dict[str, float]:
    """["Aircraft=5e-5", ...] -> {"Aircraft": 5e-5, ...}. UserError names an entry that is none, or is there twice."""
    rates = {}
    for pair in pairs:
        task, _, number = map(str.strip, str(pair).partition("="))
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not (task and 0 < rate < math.inf):
            raise UserError(f'TRAINER.CONDU.LR_OF: "{pair}" is no "Task=rate", such as "Aircraft=5e-5"')
        if task in rates:
            raise UserError(f"TRAINER.CONDU.LR_OF: {task} has two rates, {rates[task]:g} and {rate:g}")
        rates[task] = rate
    return rates


@TRAINER_REGISTRY.register()
class ConDU_Expert(TrainerX):
    """Fine-tunes CLIP on one task and leaves the expert in the store.

    An engine's epoch is a round of TRAINER.CONDU.ROUND optimiser steps. No checkpoints: until the expert is in
    the store, resume.pt carries the run.

    Attributes: settings (the node TRAINER.CONDU); task (its name in streams and stores), classnames, prompts
    (templates: the first one trains, evaluation averages over all); pretrained (the shared CLIP, never written to),
    clip (an own copy, which trains), space.
    """

    CONFIG = "CONDU"
    KEYS = KEYS
    unnamed_keys = ("TRAINER.CONDU.ROUND",)
    _stored = None  # (delta, prototypes) of an expert that was trained before

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        check_availability(cfg.OPTIM.LR_SCHEDULER, SCHEDULES, "OPTIM.LR_SCHEDULER")
        if (views := cfg.DATALOADER.K_TRANSFORMS) > 1:
            raise UserError(f"DATALOADER.K_TRANSFORMS is {views}, expected 1: a batch holds one view of an image")
        if cfg.TEST.FINAL_MODEL != "last_step":
            raise UserError(f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL}: ConDU has no validation, set last_step")
        if not cfg.INPUT.VIEW_SEEDS:
            raise UserError(
                "INPUT.VIEW_SEEDS is False: ConDU draws augmentation an image and pass only, set it to True"
            )
        learning_rates(cfg.TRAINER.CONDU.LR_OF)
        if cfg.MODEL.INIT_WEIGHTS:
            raise UserError("MODEL.INIT_WEIGHTS: an expert starts from CLIP itself, or from TRAINER.CONDU.START")

    @property
    def steps_per_epoch(self) -> int:
        """Of a round."""
        return self.settings.ROUND

    def recipe(self) -> dict:
        """What the expert depends on, JSON-ready: equal recipes train equal experts."""
        cfg, settings, optim = self.cfg, self.settings, self.cfg.OPTIM
        return {
            "task": self.task,
            "classes": digest(self.classnames),
            "prompts": self.prompts,
            "backbone": self.pretrained.digest,
            "space": self.space.metadata(),
            "start": self._start_digest,
            "iterations": settings.ITERATIONS,
            "batch": [cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAIN.ACCUMULATE],
            "lr": self.learning_rate,
            "optim": [optim.NAME, optim.ADAM_BETA1, optim.ADAM_BETA2, optim.WEIGHT_DECAY, optim.MOMENTUM],
            "schedule": [optim.LR_SCHEDULER, optim.WARMUP_STEPS, optim.GRAD_CLIP],
            "label_smoothing": settings.LABEL_SMOOTHING,
            "view": [list(cfg.INPUT.TRANSFORMS), list(cfg.INPUT.RRCROP_SCALE), digest(dict(leaves(cfg.INPUT)))],
            "precision": self.precision.mode,
            "images": getattr(self.dm.dataset, "split_digest", None),
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
        }

    # building

    def build_data_loader(self) -> None:
        super().build_data_loader()
        dataset, self.settings = self.dm.dataset, self.cfg.TRAINER.CONDU
        self.task, self.classnames, self.prompts = task_of(dataset), list(dataset.classnames), prompts_of(dataset)
        self.learning_rate = learning_rates(self.settings.LR_OF).get(self.task, self.cfg.OPTIM.LR)
        self.max_epoch = -(-self.settings.ITERATIONS // self.settings.ROUND)
        batch = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.sampler = IterationSampler(len(dataset.train_x), batch, self.cfg.SEED, rank(), world_size())
        loader = self.train_loader_x
        self.train_loader_x = loader_like(loader, self.sampler, loader.persistent_workers)

    def build_model(self) -> None:
        self.pretrained = build_clip_from_cfg(self.cfg, device=self.device, cached=True)
        self.clip = build_clip_from_cfg(self.cfg, device=self.device)
        check_input(self.cfg, self.clip)
        self.space = build_space(self.cfg, self.clip, dict(self.pretrained.module.named_parameters()))
        self._start_digest = ""
        if self.settings.START:
            path = Path(self.settings.START)
            start, *_ = ExpertStore(path.parent).load(path.name.removesuffix(SUFFIX))
            self.space.start_from(start)
            self._start_digest = tensor_digest(start)
        tokens = self.clip.tokenize([self.prompts[0].format(name.replace("_", " ")) for name in self.classnames])
        self.tokens = self.clip.shorten(tokens)  # (C, L), once: it waits for the GPU
        optim = with_values(self.cfg, {"OPTIM.LR": self.learning_rate, "OPTIM.MAX_EPOCH": 1}).OPTIM
        self.model = self.space.trained
        self.optim = build_optimizer([p for p in self.model.parameters() if p.requires_grad], optim)
        self.sched = build_lr_scheduler(self.optim, optim, self.settings.ITERATIONS)
        self.register_model("model", self.model, self.optim, self.sched)

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Batch norm keeps CLIP's statistics: they are no parameters, and a delta has only those."""
        super().set_model_mode(mode, names)
        self.clip.module.apply(set_bn_to_eval)

    # training

    def before_train(self) -> None:
        if self.cfg.SEED < 0:
            raise UserError("No seed: an expert is known by its recipe, so give --seed, 0 or above")
        trained = self.load_previous_session()
        super().before_train()
        if trained:
            log.info(f"The expert of {self.task} is trained already, by this recipe")
            self.start_epoch = self.max_epoch

    def load_previous_session(self) -> bool:
        """Take what earlier runs have left -> is there nothing left to train? Refuses what does not fit."""
        if self.store and self.store.path(self.task).is_file():
            self._stored = self.store.load(self.task, self.recipe())
        return self._stored is not None

    @property
    def store(self) -> ExpertStore | None:
        """Where experts are kept."""
        return ExpertStore(self.settings.EXPERTS or os.path.join(self.output_dir, "experts"))

    def epoch_batches(self):
        accumulate = self.cfg.TRAIN.ACCUMULATE
        done = self.epoch * self.settings.ROUND
        self.num_batches = min(self.settings.ROUND, self.settings.ITERATIONS - done) * accumulate
        self.sampler.start(done * accumulate, self.num_batches)
        return ((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,), on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))

    parse_batch_test = parse_batch_train

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, D), (C, D) -> (B, C), in fp32 whatever the towers ran in: half a logit of 100 is much."""
        with torch.autocast(self.device.type, enabled=False):
            return compiled(cosine_logits, self.clip)(image.float(), text.float(), self.clip.logit_scale.float())

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Cross-entropy over the task's classes; every class goes through the text tower."""
        images, labels = self.parse_batch_train(batch)
        logits = self.logits(self.clip.encode_image(images), self.clip.encode_text(self.tokens))
        self.log_metrics(acc=compute_accuracy(logits.detach(), labels)[0])
        return {"ce": F.cross_entropy(logits, labels, label_smoothing=self.settings.LABEL_SMOOTHING)}

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Nothing: the store or the stream holds what comes out, and resume.pt what is on its way."""

    def after_train(self) -> None:
        self.save_expert()
        super().after_train()

    def save_expert(self) -> None:
        """Leave the expert on disk, and make it what is tested."""
        delta, _ = self.expert()
        self.deploy(lambda parameters: self.space.fill(delta, parameters))

    def expert(self) -> tuple[dict[str, Tensor], Tensor]:
        """Delta and prototypes (C, D) of this task, trained by this run or an earlier one; kept in the store.

        Equal in all processes of a run.
        """
        if self._stored is None:
            with torch.no_grad():
                delta = {name: value.cpu() for name, value in self.space.delta().items()}
            loader = ordered_loader(self.cfg, self.dm.dataset.train_x)  # without augmentation
            self._stored = delta, prototypes_of(self.pretrained, loader, self.classnames, self.prompts).cpu()
            if self.store and is_main():
                self.store.save(self.task, *self._stored, self.recipe())
        return self._stored[0], self._stored[1]

    # evaluation

    def deploy(self, fill: Callable[[dict], None]) -> None:
        """Make the own copy the plain CLIP that `fill(parameters)` writes."""
        self.space.release()
        fill(dict(self.clip.module.named_parameters()))
        self.__dict__.pop("class_vectors", None)  # of what was there before

    @cached_property
    def class_vectors(self) -> Tensor:
        """(C, D) of what is tested: the mean over all prompts."""
        with torch.no_grad(), self.precision.autocast():
            return text_vectors(self.clip, self.classnames, self.prompts)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """The task's expert, from a store of experts."""
        delta, *_ = ExpertStore(directory).load(self.task)
        self.deploy(lambda parameters: self.space.fill(delta, parameters))

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        with self.precision.autocast():
            return self.logits(self.clip.encode_image(images), self.class_vectors)

    def metadata(self) -> dict:
        """What results.json records of the training."""
        return {
            "task": self.task,
            "backbone": self.pretrained.metadata(),
            "data_seen": images_seen(self),
            "max_epoch": self.max_epoch,
            "epochs": self.max_epoch,
            "condu": self.space.metadata() | {"iterations": self.settings.ITERATIONS, "lr": self.learning_rate},
            "recipe": recipe(self.cfg) | self.recipe(),
        }
