"""Training one expert of a stream of tasks (ConDU, arXiv 2503.10705).

An expert is CLIP fine-tuned on one task, both towers or LoRA in them, always from the pretrained weights: it
does not depend on the tasks before it.
Letters: B images, C classes, L tokens, D joint width.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.clip import build_clip_from_cfg, check_input, cosine_logits
from dassl.config import leaves
from dassl.data import build_data_loader
from dassl.data.shards import loader_like
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.recipe import recipe
from dassl.engine.results import images_seen
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, digest, get_logger, set_bn_to_eval, tensor_digest
from dassl.utils.distributed import is_main, rank, world_size

from .iterations import IterationSampler
from .settings import KEYS, check_keys, learning_rates
from .snapshot import prompts_of, prototypes_of, task_of, text_vectors
from .store import SUFFIX, ExpertStore
from .tuning import build_space

log = get_logger()


@TRAINER_REGISTRY.register()
class ConDU_Expert(TrainerX):
    """Fine-tunes CLIP on one task and leaves the expert in the store.

    An engine's epoch is a round of TRAINER.CONDU.ROUND optimiser steps. No checkpoints: until the expert is in
    the store, resume.pt carries the run.

    Attributes: pretrained (the shared CLIP, never written to), clip (an own copy, which trains), space.
    """

    CONFIG = "CONDU"
    unnamed_keys = ("TRAINER.CONDU.ROUND",)
    _classifier: Tensor | None = None  # class vectors (C, D), held while one evaluation runs
    _stored = None  # (delta, prototypes) of an expert that was trained before

    KEYS = KEYS

    def check_cfg(self, cfg: CN) -> None:
        super().check_cfg(cfg)
        check_keys(cfg)
        if cfg.MODEL.INIT_WEIGHTS:
            raise UserError("MODEL.INIT_WEIGHTS: an expert starts from CLIP itself, or from TRAINER.CONDU.START")

    # the task

    @property
    def own(self) -> CN:
        """The node TRAINER.CONDU."""
        return self.cfg.TRAINER.CONDU

    @property
    def task(self) -> str:
        """The task's name in streams and stores."""
        return task_of(self.dm.dataset)

    @property
    def classnames(self) -> list[str]:
        """By label."""
        return list(self.dm.dataset.classnames)

    @property
    def prompts(self) -> list[str]:
        """Templates; the first one trains, evaluation averages over all."""
        return prompts_of(self.dm.dataset)

    @property
    def steps_per_epoch(self) -> int:
        """Of a round."""
        return self.own.ROUND

    @property
    def learning_rate(self) -> float:
        """Of this task."""
        return learning_rates(self.own.LR_OF).get(self.task, self.cfg.OPTIM.LR)

    def recipe(self) -> dict:
        """What the expert depends on, JSON-ready: equal recipes train equal experts."""
        cfg, own = self.cfg, self.own
        optim = cfg.OPTIM
        return {
            "task": self.task,
            "classes": digest(self.classnames),
            "prompts": self.prompts,
            "backbone": self.pretrained.digest,
            "space": self.space.metadata(),
            "start": self._start_digest,
            "iterations": own.ITERATIONS,
            "batch": [cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAIN.ACCUMULATE],
            "lr": self.learning_rate,
            "optim": [optim.NAME, optim.ADAM_BETA1, optim.ADAM_BETA2, optim.WEIGHT_DECAY, optim.MOMENTUM],
            "schedule": [optim.LR_SCHEDULER, optim.WARMUP_STEPS, optim.GRAD_CLIP],
            "label_smoothing": own.LABEL_SMOOTHING,
            "view": [list(cfg.INPUT.TRANSFORMS), list(cfg.INPUT.RRCROP_SCALE), digest(dict(leaves(cfg.INPUT)))],
            "precision": self.precision.mode,
            "images": getattr(self.dm.dataset, "split_digest", None),
            "shots": cfg.DATASET.NUM_SHOTS,
            "seed": cfg.SEED,
        }

    # building

    def build_data_loader(self) -> None:
        super().build_data_loader()
        self.max_epoch = -(-self.own.ITERATIONS // self.own.ROUND)
        batch = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.sampler = IterationSampler(len(self.dm.dataset.train_x), batch, self.cfg.SEED, rank(), world_size())
        loader = self.train_loader_x
        self.train_loader_x = loader_like(loader, self.sampler, loader.persistent_workers)

    def build_model(self) -> None:
        self.pretrained = build_clip_from_cfg(self.cfg, device=self.device, cached=True)
        self.clip = build_clip_from_cfg(self.cfg, device=self.device)
        check_input(self.cfg, self.clip)
        self.space = build_space(self.cfg, self.clip, dict(self.pretrained.module.named_parameters()))
        self._start_digest = ""
        if self.own.START:
            path = Path(self.own.START)
            start = ExpertStore(path.parent).load(path.name.removesuffix(SUFFIX))
            if start is None:
                raise UserError(f'TRAINER.CONDU.START: no expert "{path}"')
            self.space.start_from(start[0])
            self._start_digest = tensor_digest(start[0])
        names = [name.replace("_", " ") for name in self.classnames]
        broken = [prompt for prompt in self.prompts if "{}" not in prompt]
        if broken:
            raise UserError(f'{self.task}: the prompt "{broken[0]}" has no {{}} where the class name goes')
        tokens = [self.clip.tokenize([prompt.format(name) for name in names]) for prompt in self.prompts]
        self.tokens = self.clip.shorten(tokens[0])  # (C, L), once: it waits for the GPU
        optim = self.cfg.OPTIM.clone()
        optim.defrost()
        optim.LR, optim.MAX_EPOCH = self.learning_rate, 1
        self.model = self.space.trained
        self.optim = build_optimizer([p for p in self.model.parameters() if p.requires_grad], optim)
        self.sched = build_lr_scheduler(self.optim, optim, self.own.ITERATIONS)
        self.register_model("model", self.model, self.optim, self.sched)

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Batch norm keeps CLIP's statistics: they are no parameters, and a delta has only those."""
        super().set_model_mode(mode, names)
        self.clip.module.apply(set_bn_to_eval)

    # training

    def before_train(self) -> None:
        if self.cfg.SEED < 0:
            raise UserError("No seed: an expert is known by its recipe, so give --seed, 0 or above")
        self.load_previous_session()
        super().before_train()
        if self.trained_before():
            log.info(f"The expert of {self.task} is trained already, by this recipe")
            self.start_epoch = self.max_epoch

    def load_previous_session(self) -> None:
        """What earlier runs have left; refuses what does not go together with it."""
        self._stored = self.store.load(self.task, self.recipe()) if self.store else None

    def trained_before(self) -> bool:
        """Is there nothing left to train?"""
        return self._stored is not None

    @property
    def store(self) -> ExpertStore | None:
        """Where experts are kept."""
        return ExpertStore(self.own.EXPERTS or os.path.join(self.output_dir, "experts"))

    def epoch_batches(self):
        accumulate = self.cfg.TRAIN.ACCUMULATE
        done = self.epoch * self.own.ROUND
        self.num_batches = min(self.own.ROUND, self.own.ITERATIONS - done) * accumulate
        self.sampler.start(done * accumulate, self.num_batches)
        return ((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,), on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))

    parse_batch_test = parse_batch_train

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, D), (C, D) -> (B, C), in fp32 whatever the towers ran in: half a logit of 100 is much."""
        with torch.autocast(self.device.type, enabled=False):
            return cosine_logits(image.float(), text.float(), self.clip.logit_scale.float())

    def losses(self, batch: dict) -> dict[str, Tensor]:
        """Cross-entropy over the task's classes; every class goes through the text tower."""
        images, labels = self.parse_batch_train(batch)
        logits = self.logits(self.clip.encode_image(images), self.clip.encode_text(self.tokens))
        self.log_metrics(acc=compute_accuracy(logits.detach(), labels)[0])
        return {"ce": F.cross_entropy(logits, labels, label_smoothing=self.own.LABEL_SMOOTHING)}

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
            self._stored = delta, self.prototypes()
            if self.store and is_main():
                self.store.save(self.task, *self._stored, self.recipe())
        return self._stored[0], self._stored[1]

    def prototypes(self) -> Tensor:
        """(C, D) on the CPU: pretrained features of this run's training pictures without augmentation, and texts."""
        loader = build_data_loader(
            self.cfg,
            data_source=self.dm.dataset.train_x,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(self.cfg, is_train=False),
            is_train=False,
        )
        return prototypes_of(self.pretrained, loader, self.classnames, self.prompts).cpu()

    # evaluation

    def deploy(self, fill) -> None:
        """Make the own copy the plain CLIP that `fill(parameters)` writes."""
        self.space.release()
        fill(dict(self.clip.module.named_parameters()))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """The task's expert, from a store of experts."""
        found = ExpertStore(directory).load(self.task)
        if found is None:
            names = ", ".join(ExpertStore(directory).names()) or "none"
            raise UserError(f'"{directory}" has no expert of {self.task}; there: {names}')
        self.deploy(lambda parameters: self.space.fill(found[0], parameters))

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        text = self.class_vectors() if self._classifier is None else self._classifier
        with self.precision.autocast():
            return self.logits(self.clip.encode_image(images), text)

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """(C, D): the mean over all prompts."""
        with self.precision.autocast():
            return text_vectors(self.clip, self.classnames, self.prompts)

    def test(self, split: str | None = None) -> float:
        """Accuracy in percent; the text tower runs once."""
        self.set_model_mode("eval")
        self._classifier = self.class_vectors()
        try:
            return super().test(split)
        finally:
            self._classifier = None

    def metadata(self) -> dict:
        """What results.json records of the training."""
        return {
            "task": self.task,
            "backbone": self.pretrained.metadata(),
            "data_seen": images_seen(self),
            "max_epoch": self.max_epoch,
            "epochs": self.max_epoch,
            "condu": self.space.metadata() | {"iterations": self.own.ITERATIONS, "lr": self.learning_rate},
            "recipe": recipe(self.cfg) | self.recipe(),
        }
