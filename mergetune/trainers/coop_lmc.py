"""MERGETUNE on CoOp (arXiv 2601.10497): the prompt trained on, connected to zero-shot CLIP and to CoOp.

    loss = CE(w) + LAMBDA * distance(w, w1) + BETA * mean_t CE(w2 + t (w - w2))

w1 zero-shot CLIP, w2 the stage-1 prompt, w the prompt being trained. SPACE features: w are the class
vectors the prompt makes, and the path costs no encoder call. SPACE weights: w is the context itself.
"""

import torch
from torch import Tensor
from yacs.config import CfgNode as CN

from dassl.clip import text_classifier
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, get_logger
from mergetune import stage1
from mergetune.lmc import (
    FEATURE_DISTANCES,
    GRIDS,
    anchor_distance,
    feature_line_loss,
    interpolate,
    line_loss,
    line_points,
    weight_distance,
)
from mergetune.prompts import word_context
from mergetune.trainers.coop import CoOp

log = get_logger()


@TRAINER_REGISTRY.register()
class CoOp_LMC(CoOp):
    """Its endpoints: the data set's template through CLIP, and the stage-1 prompt (`--resume-coop`)."""

    CONFIG = "LMC"
    model_name = "prompt_mid_learner"
    stage1_name = "prompt_learner"
    # the released code's keys; a value given to one of them sets ours
    ALIASES = {
        "TRAINER.COOP.LOSS_TYPE": "TRAINER.LMC.DISTANCE",
        "TRAINER.COOP.W": "TRAINER.LMC.LAMBDA",
        "TRAINER.COOP.W_LMC": "TRAINER.LMC.BETA",
        "TRAINER.COOP.NUM_SAMPLES": "TRAINER.LMC.NUM_SAMPLES",
        "TRAINER.COOP.COOP_LMC": "TRAINER.LMC.ENABLED",
    }

    @classmethod
    def default_config(cls) -> CN:
        return CN(
            {
                "SPACE": "features",  # features (class vectors) or weights (trainable parameters)
                "DISTANCE": "cosine",  # features: cosine, l2, l2sq; weights: l2sq
                "LAMBDA": 10.0,  # of the distance to zero-shot CLIP
                "BETA": 1.0,  # of the loss along the path to the stage-1 solution
                "ENABLED": True,  # False: BETA is 0
                "TAU": 1.0,  # start at (1 - TAU) zero-shot + TAU stage 1
                "NUM_SAMPLES": 5,  # points on the path
                "GRID": "released",  # released: 0.1, 0.1 + 1/N, ...; uniform: i/N
            }
        )

    def check_cfg(self, cfg: CN) -> None:
        """Refuse values that do not go together, before anything is loaded."""
        super().check_cfg(cfg)
        own = cfg.TRAINER.LMC
        distances = {"features": FEATURE_DISTANCES, "weights": ("l2sq",)}
        if own.SPACE not in distances:
            raise UserError(f"TRAINER.LMC.SPACE is {own.SPACE!r}, expected one of {', '.join(distances)}")
        if own.DISTANCE not in distances[own.SPACE]:
            raise UserError(
                f"TRAINER.LMC.DISTANCE is {own.DISTANCE!r}, expected one of {', '.join(distances[own.SPACE])} "
                f"in the space of {own.SPACE}"
            )
        if own.GRID not in GRIDS:
            raise UserError(f"TRAINER.LMC.GRID is {own.GRID!r}, expected one of {', '.join(GRIDS)}")
        if not 0 <= own.TAU <= 1:
            raise UserError(f"TRAINER.LMC.TAU is {own.TAU}, expected 0 (zero-shot) to 1 (stage 1)")
        if own.NUM_SAMPLES < 1:
            raise UserError(f"TRAINER.LMC.NUM_SAMPLES is {own.NUM_SAMPLES}, expected at least 1")

    def build_model(self) -> None:
        super().build_model()
        if self.cfg.RESUME_COOP:
            self.set_endpoints()

    def before_train(self) -> None:
        if not self.cfg.RESUME_COOP:
            raise UserError(f"{self.cfg.TRAINER.NAME} continues a stage-1 run: name its folder with --resume-coop")
        self.check_stage1()
        super().before_train()

    def set_endpoints(self) -> None:
        """w1 and w2 of this run, and the start between them."""
        own = self.cfg.TRAINER.LMC
        self.line = line_points(own.NUM_SAMPLES, own.GRID)
        self.points = torch.tensor(self.line, device=self.device)  # reading it back would wait for the GPU
        self.beta = own.BETA if own.ENABLED else 0.0
        self.ctx2 = self.read_stage1()
        self.ctx1 = self.zero_shot_context() if own.TAU < 1 or own.SPACE == "weights" else None
        self.f1 = text_classifier(self.clip, self.classnames, [self.template]).float()  # (C, D)
        self.f2 = self.class_vectors(self.ctx2)  # (C, D)
        with torch.no_grad():
            start = self.ctx2 if self.ctx1 is None else interpolate(self.ctx1, self.ctx2, own.TAU)
            self.model.ctx.copy_(start)

    def read_stage1(self) -> Tensor:
        """The stage-1 context, of this run's shape and backbone."""
        self.stage1_file = stage1.find_checkpoint(self.cfg.RESUME_COOP, self.stage1_name)
        ctx, self.stage1_buffers = stage1.load_context(self.stage1_file)
        stage1.check_shape(self.stage1_file, ctx, self.model.ctx)
        stage1.check_backbone(self.stage1_file, self.facts())
        log.info(f"Stage 1: {self.stage1_file}")
        return ctx.to(self.device)

    def check_stage1(self) -> None:
        """Training goes on with stage 1's own classes only; an evaluation may have others."""
        stage1.check_classes(self.stage1_file, self.facts())
        stage1.check_buffers(
            self.stage1_file, self.stage1_buffers, self.model.fixed, self.model.n_ctx, self.clip.start_tokens
        )

    def zero_shot_context(self) -> Tensor:
        """The context of w1 among the parameters: the embeddings of CTX_INIT's words."""
        if not self.model.words:
            raise UserError(
                "The zero-shot end of a prompt is the embedding of CTX_INIT's words, but CTX_INIT is False "
                "(random context): set TRAINER.COOP.CTX_INIT, or SPACE features with TAU 1"
            )
        return word_context(self.clip, self.model.words).float().expand_as(self.model.ctx).clone()

    def losses(self, batch: dict) -> dict[str, Tensor]:
        own = self.cfg.TRAINER.LMC
        images, labels = self.parse_batch_train(batch)
        image, text = self.image_features(images), self.text_features().float()
        losses = {"ce": self.cross_entropy(image, text, labels)}
        if own.LAMBDA:
            losses["anchor"] = own.LAMBDA * self.anchor(text)
        if self.beta:
            losses["lmc"] = self.beta * self.path_loss(image, text, labels)
        return losses

    def anchor(self, text: Tensor) -> Tensor:
        """Distance to zero-shot CLIP."""
        if self.cfg.TRAINER.LMC.SPACE == "weights":
            return weight_distance({"ctx": self.model.ctx}, {"ctx": self.ctx1})
        return anchor_distance(text, self.f1, self.cfg.TRAINER.LMC.DISTANCE)

    def path_loss(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy along the path from the stage-1 solution."""
        if self.cfg.TRAINER.LMC.SPACE == "features":
            return feature_line_loss(image, labels, self.f2, text, self.points, self.clip.logit_scale)
        noted = dict(self.notes)

        def loss(ctx: Tensor) -> Tensor:
            return self.cross_entropy(image, self.text_features(ctx), labels)

        mean = line_loss(loss, self.ctx2, self.model.ctx, self.line)
        self.note(**noted)
        return mean


@TRAINER_REGISTRY.register()
class KgCoOp_COOP_LMC(CoOp_LMC):
    """The name under which the authors' code registered it."""
