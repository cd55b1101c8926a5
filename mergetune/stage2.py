"""MERGETUNE on any stage-1 trainer (arXiv 2601.10497): trained on, connected to zero-shot CLIP and to stage 1.

    loss = L(w) + LAMBDA * distance(w, w1) + BETA * mean_t L(w2 + t (w - w2))

w1 zero-shot CLIP, w2 the stage-1 solution, w what trains. SPACE features: w are the class vectors the model
makes, and the path costs no encoder call. SPACE weights: w are the trainable parameters themselves, at one
pass of the model a point.
Letters: B images, C classes, D joint width, S line points.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode as CN

from dassl.clip import compiled, text_classifier
from dassl.config import Key
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.results import check_classes, with_changes
from dassl.report.methods import split_changes
from dassl.utils import UserError, get_logger
from dassl.utils.moved import old_names
from mergetune import lmc, stage1

log = get_logger()

DISTANCES = {"features": lmc.FEATURE_DISTANCES, "weights": ("l2sq",)}  # by SPACE
PATHS = ("stage1", "zero_shot")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by their state-dict names."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


@contextmanager
def swapped_parameters(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run `module` with these tensors in the place of its parameters; gradients reach the tensors.

    Written past nn.Module's own setter, which takes no tensor with a history for a parameter.
    Raises KeyError for a name the module lacks, ValueError for another shape; nothing is lent then.
    """
    slots = []
    for name, value in weights.items():
        owner_name, _, leaf = name.rpartition(".")
        slot = module.get_submodule(owner_name)._parameters
        if slot[leaf].shape != value.shape:
            raise ValueError(f"{name} is {tuple(slot[leaf].shape)}, given {tuple(value.shape)}")
        slots.append((slot, leaf, slot[leaf], value))
    try:
        for slot, leaf, _, value in slots:
            slot[leaf] = value
        yield
    finally:
        for slot, leaf, before, _ in slots:
            slot[leaf] = before


class MergeTune:
    """Mixin in front of a stage-1 trainer. It asks that trainer for `zero_shot_weights()`, which is w1.

    What a subclass names here is all that jobs, tables, pages and imports know of the pair.
    """

    CONFIG = "LMC"
    stage1: type | str = ""  # the trainer that it continues, or its registered name
    protocols = ("base2new", "cross", "dg", "fewshot")  # that train.sh runs it through
    # preset -> its yaml in configs/trainers/NAME; a class with yamls that names none of them has all that are there
    presets: Mapping[str, str] = {}
    toy_presets: Mapping[str, str] = {}  # those of the built-in benchmark, where they are others
    has_zero_shot = True  # at some value of the trained weights the model is CLIP, with which it can be merged
    path_note = ""  # what a reader of the path between class vectors must know
    stage1_name = ""  # model folder of the stage-1 run; default: as its trainer's, else as this one's own

    KEYS = {
        "SPACE": Key(
            "features", "features (class vectors) or weights (trainable parameters)", choices=tuple(DISTANCES)
        ),
        "DISTANCE": Key("cosine", "features: any; weights: l2sq", choices=lmc.FEATURE_DISTANCES, role="training"),
        "LAMBDA": Key(10.0, "of the distance to zero-shot CLIP", ge=0, role="training"),
        "BETA": Key(1.0, "of the loss along the path to the stage-1 solution", ge=0, role="training"),
        "ENABLED": Key(True, "False: BETA is 0", role="training"),
        "TAU": Key(1.0, "start at (1 - TAU) zero-shot + TAU stage 1", ge=0, le=1, role="training"),
        "NUM_SAMPLES": Key(5, "points on the path", ge=1, role="training"),
        "GRID": Key("released", "released: 0.1, 0.1 + 1/N, ...; uniform: i/N", choices=lmc.GRIDS, role="training"),
        "PATH_TO": Key("stage1", "its other end; zero_shot: as released for MMA", choices=PATHS, role="training"),
    }

    def check_cfg(self, cfg: CN) -> None:
        """Refuse values that do not go together, before anything is loaded."""
        super().check_cfg(cfg)
        settings = cfg.TRAINER.LMC
        if settings.DISTANCE not in (distances := DISTANCES[settings.SPACE]):
            raise UserError(
                f"TRAINER.LMC.DISTANCE is {settings.DISTANCE!r}, expected one of {', '.join(distances)} "
                f"in the space of {settings.SPACE}"
            )
        if settings.PATH_TO == "zero_shot" and settings.SPACE != "features":
            raise UserError("TRAINER.LMC.PATH_TO zero_shot is a path between class vectors: set SPACE to features")

    def build_model(self) -> None:
        super().build_model()
        settings = self.cfg.TRAINER.LMC
        self.line = lmc.line_points(settings.NUM_SAMPLES, settings.GRID)
        self.points = torch.tensor(self.line, device=self.device)  # reading it back would wait for the GPU
        self.beta = settings.BETA if settings.ENABLED else 0.0
        if self.cfg.RESUME_COOP:
            self.set_endpoints()

    def before_train(self) -> None:
        if not self.cfg.RESUME_COOP:
            raise UserError(f"{self.cfg.TRAINER.NAME} continues a stage-1 run: name its folder with --resume-coop")
        self.check_stage1()
        super().before_train()

    # The endpoints

    def set_endpoints(self) -> None:
        """w1 and w2 as weights and as class vectors f1, f2 (C, D), and the start between them."""
        settings = self.cfg.TRAINER.LMC
        self.w2 = self.read_stage1()
        with torch.no_grad():
            self.w1 = self.zero_shot_weights() if settings.TAU < 1 or settings.SPACE == "weights" else None
            self.f1, self.f2 = self.zero_shot_vectors(), self.class_vectors()
            if self.w1 is not None:
                self.start_at(lmc.interpolate(self.w1, self.w2, settings.TAU))

    def start_at(self, weights: dict[str, Tensor]) -> None:
        """Copy weights into the trainable parameters."""
        for name, value in trainable(self.model).items():
            value.data.copy_(weights[name])

    def zero_shot_vectors(self) -> Tensor:
        """f1 (C, D): raw class vectors of the data set's template through CLIP."""
        return text_classifier(self.clip, self.classnames, [self.template]).float()

    def read_stage1(self) -> dict[str, Tensor]:
        """w2: the stage-1 weights, of this model's names and shapes and on its backbone; the model then has them."""
        first = TRAINER_REGISTRY.get(name).model_name if (name := stage1_of(type(self))) else self.model_name
        self.stage1_file = stage1.find_checkpoint(self.cfg.RESUME_COOP, self.stage1_name or first)
        state = stage1.load_state(self.stage1_file)
        stage1.check_backbone(self.stage1_file, self.metadata())
        if self.bound_to_classes:
            check_classes(self.stage1_file, self.classnames, self.bound_to_classes)
        self._load_weights(self.model_name, str(self.stage1_file), dict(state))
        loaded = self.drop_keys(dict(state))
        self.stage1_beside = {name: value for name, value in state.items() if name not in loaded}
        log.info(f"Stage 1: {self.stage1_file}")
        return {name: value.detach().clone() for name, value in trainable(self.model).items()}

    def check_stage1(self) -> None:
        """Training goes on with stage 1's own classes only; an evaluation may have others."""
        check_classes(self.stage1_file, self.classnames)

    # The loss

    def losses(self, batch: dict) -> dict[str, Tensor]:
        settings = self.cfg.TRAINER.LMC
        images, labels = self.parse_batch_train(batch)
        if self.frozen_image_tower:
            images = self.raw_features(images)  # one pass for all points of the path
        image, text = self.image_features(images), self.text_features().float()
        losses = {"ce": self.cross_entropy(image, text, labels)}
        if settings.LAMBDA:
            losses["anchor"] = settings.LAMBDA * self.anchor(text)
        if self.beta:
            in_features = settings.SPACE == "features"
            path = self.feature_path(image, text, labels) if in_features else self.weight_path(images, labels)
            losses["lmc"] = self.beta * path
        return losses

    def anchor(self, text: Tensor) -> Tensor:
        """Distance to zero-shot CLIP."""
        if self.cfg.TRAINER.LMC.SPACE == "weights":
            return lmc.weight_distance(trainable(self.model), self.w1)
        return lmc.anchor_distance(text, self.f1, self.cfg.TRAINER.LMC.DISTANCE)

    def feature_path(self, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy on the path between class vectors, at the image features of w."""
        start, end = self.f2, text
        if self.cfg.TRAINER.LMC.PATH_TO == "zero_shot":
            start, end = text, F.normalize(self.f1, dim=-1)
        return compiled(lmc.feature_line_loss, self.clip)(image, labels, start, end, self.points, self.clip.logit_scale)

    def weight_path(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy on the path between the trainable parameters: one pass of the model a point."""
        noted = dict(self.step_metrics)

        def loss(weights: dict[str, Tensor]) -> Tensor:
            with swapped_parameters(self.model, weights):
                return self.cross_entropy(self.image_features(images), self.text_features().float(), labels)

        mean = lmc.line_loss(loss, self.w2, trainable(self.model), self.line)
        self.log_metrics(**noted)  # the accuracy to log is that of w
        return mean

    # What the path card and the tables read

    def solutions(self, space: str) -> dict[str, Tensor | dict[str, Tensor]]:
        """zero_shot, ours, fine_tuned: class vectors (C, D), or weights by name."""
        if space == "features":
            return {"zero_shot": self.f1, "ours": self.class_vectors(), "fine_tuned": self.f2}
        ours = {name: value.detach().clone() for name, value in trainable(self.model).items()}
        self.start_at(self.w2)  # where w1 is read off stage 1, as with adapters
        zero_shot = self.zero_shot_weights()
        self.start_at(ours)
        return {"zero_shot": zero_shot, "ours": ours, "fine_tuned": self.w2}

    @torch.no_grad()
    def path_logits(self, space: str, start, end, points: Tensor, images: Tensor) -> Tensor:
        """Logits (S, B, C) on the straight line between two solutions; images as `model_inference` takes them."""
        if space == "features":
            return lmc.line_logits(self.image_features(images), start, end, points, self.clip.logit_scale)
        rows = []
        for t in points.tolist():
            with swapped_parameters(self.model, lmc.interpolate(start, end, t)):
                rows.append(self.model_inference(images).float())
        return torch.stack(rows)

    def metadata(self) -> dict:
        values = self.cfg.TRAINER.LMC
        used = {key: values[key] for key in MergeTune.KEYS if key != "ENABLED"}
        used["BETA"] *= values.ENABLED
        facts = {"lmc": used, "zero_shot_template": self.zero_shot_prompt(values.SPACE)}
        # what the stage-1 run changed in its recipe, and this one did not in its own
        preset = stage1.run_fact(self.stage1_file, "preset", str) if self.cfg.RESUME_COOP else ""
        known = split_changes(self.cfg.PRESET)[1]
        changes = [f"stage 1's {key}" for key in split_changes(preset)[1] if key not in known]
        return super().metadata() | facts | {"preset": with_changes(self.cfg.PRESET, changes)}


@dataclass(frozen=True)
class MethodPair:
    """A stage-1 method and a stage 2 on it, by their registered names, as the classes say."""

    name: str  # what train.sh calls it: stage 1's label, where stage 2 is LABEL_LMC, else stage 2's name
    stage1: str
    stage2: str
    label: str  # of stage 1, as tables print it
    taught_by: str  # what trains stage 1's teacher
    protocols: tuple[str, ...]
    has_zero_shot: bool
    template_family: str  # of the zero-shot end between class vectors


def stage1_of(cls: type) -> str:
    """The registered name of the trainer that a class continues, "" if it is no stage 2."""
    first = getattr(cls, "stage1", "")
    return first.__name__ if isinstance(first, type) else first if isinstance(first, str) else ""


def label_of(name: str) -> str:
    """What tables call a registered trainer."""
    cls = TRAINER_REGISTRY.get(name)
    return vars(cls).get("label", name)


def aliases() -> dict[str, str]:
    """Other registered names of a trainer -> its own."""
    classes = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY)
    return {cls.__name__: vars(cls)["alias_of"].__name__ for cls in classes if "alias_of" in vars(cls)}


def method_pairs() -> dict[str, MethodPair]:
    """All pairs that registered stage-2 trainers name -> {stage 2: pair}: LABEL_LMC first, by their modules.

    A class without `stage1`, another name of a class (`alias_of`) and a control that is only evaluated are no pair.
    """
    pairs = {}
    for cls in sorted(map(TRAINER_REGISTRY.get, TRAINER_REGISTRY), key=lambda cls: cls.__module__):
        name, first = cls.__name__, stage1_of(cls)
        if not first or not getattr(cls, "needs_checkpoint", True) or "alias_of" in vars(cls):
            continue
        if first not in TRAINER_REGISTRY:
            warnings.warn(f"{name} is in no job or table: its stage1 is {first!r}, no registered trainer", stacklevel=2)
            continue
        teacher, label = getattr(cls, "taught_by", ""), label_of(first)
        pairs[name] = MethodPair(
            name=label if name == f"{label}_LMC" else name,
            stage1=first,
            stage2=name,
            label=label,
            taught_by=teacher.__name__ if isinstance(teacher, type) else teacher,
            protocols=getattr(cls, "protocols", MergeTune.protocols),
            has_zero_shot=getattr(cls, "has_zero_shot", True),
            template_family=getattr(cls, "template_family", ""),
        )
    return dict(sorted(pairs.items(), key=lambda item: item[1].name != item[1].label))


__getattr__ = old_names(__name__)
