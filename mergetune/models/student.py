"""Distillation from a frozen teacher: its features come from the bank, never from its towers during a step.

PromptKD (Li et al., arXiv 2403.02781): the teacher's text features are the classifier of a student, which is
CLIP's image tower with prompts and a projection into the teacher's space.
Letters: B images, C classes, D and E joint widths of student and teacher, S line points.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dassl.clip import ClipBackbone, cosine_logits, tensor_digest, text_classifier
from dassl.clip.feature_bank import FeatureBank
from dassl.data.shards import loader_like
from dassl.data.views import ViewIndex
from dassl.engine.base import load_exactly
from dassl.modeling.ops import BatchNorm2d
from dassl.utils import UserError, digest, get_logger
from mergetune import stage1
from mergetune.models.deep_prompts import DeepPromptedClip, ImagePrompts, keep_prompts, prompt_sizes

log = get_logger()

PROMPTSRC_FOLDER = "VLPromptLearner"


def distillation(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of logits (..., C), summed and divided by the number of the student's logits.

    Student logits (S, B, C) of a path against a teacher's (B, C) give the mean over its S points.
    """
    wanted = F.log_softmax(teacher / temperature, dim=-1).expand_as(student)
    logs = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(logs, wanted, reduction="sum", log_target=True) * temperature**2 / student.numel()


class PromptedTower:
    """A frozen image tower with trained tensors of its own, as a feature bank sees one.

    Its digest covers the backbone's weights and those tensors.
    """

    def __init__(self, backbone: ClipBackbone, trained: nn.Module, encode: Callable[[Tensor], Tensor]):
        self.backbone, self.module, self.encode_image = backbone, trained.eval().requires_grad_(False), encode
        self.name, self.activation = f"{backbone.name} with {type(trained).__name__}", backbone.activation
        self.digest = digest([backbone.digest, tensor_digest(trained.state_dict())])
        self.dtype, self.device, self.compiled = backbone.dtype, backbone.device, backbone.compiled


class Teacher:
    """A frozen CLIP, with PromptSRC's prompts if `folder` names a run or a file of them.

    tower: what the feature bank encodes with; text: class vectors (C, E), unit norm; scale: of its cosines.
    """

    def __init__(self, clip: ClipBackbone, classnames: list[str], *, template: str, folder: str = ""):
        self.clip, self.scale, self.file = clip, clip.logit_scale.float(), ""
        if folder:
            model = self._prompted(classnames, folder)
            self.tower = PromptedTower(clip, model, model.encode_image)
            with torch.no_grad():
                text = model.encode_classes()
        else:
            log.info(f"Teacher: plain {clip.name}, for no run of PromptSRC is named")
            self.tower, text = clip, text_classifier(clip, classnames, [template])
        self.text = F.normalize(text.float(), dim=-1)

    def _prompted(self, classnames: list[str], folder: str) -> DeepPromptedClip:
        file = stage1.find_checkpoint(folder, PROMPTSRC_FOLDER, "TRAINER.PROMPTKD.TEACHER_DIR")
        state = keep_prompts(stage1.load_state(file))
        if not {"prompt_learner.ctx", "image_encoder.VPT"} <= state.keys():
            raise UserError(f"{file} holds no teacher: expected the keys of PromptSRC, found {', '.join(state)}")
        stage1.check_backbone(file, {"backbone": {"name": self.clip.name, "digest": self.clip.digest}})
        model = DeepPromptedClip(self.clip, classnames, **prompt_sizes(state))
        load_exactly(model, PROMPTSRC_FOLDER, file, state)
        log.info(f"Teacher: {self.clip.name} with the prompts of {file}")
        self.file = str(file)
        return model

    def logits(self, features: Tensor) -> Tensor:
        """(B, E) raw image features -> (B, C)."""
        return cosine_logits(features.float(), self.text, self.scale)

    def fact(self) -> dict:
        """What results.json records of it."""
        shots = stage1.run_facts(Path(self.file)).get("shots") if self.file else None
        return {"name": self.clip.name, "digest": self.tower.digest, "file": self.file, "shots": shots}


class Projection(nn.Module):
    """(B, D) -> (B, E): two linear layers with a batch norm between, as 1x1 convolutions under `conv1`.

    The norm is over the batch of all processes.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(dim, out, 1), BatchNorm2d(out), nn.ReLU(inplace=True), nn.Conv2d(out, out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x[:, :, None, None])[:, :, 0, 0]


class Student(nn.Module):
    """CLIP's image tower with prompts, and a projection into the teacher's space.

    Keys: `image_encoder.VPT`, `image_encoder.transformer.resblocks.j.VPT_shallow`, `VPT_image_trans.conv1...`.
    """

    def __init__(self, backbone: ClipBackbone, out: int, *, count: int, depth: int):
        super().__init__()
        self.image_encoder = ImagePrompts(backbone, count, depth)
        self.VPT_image_trans = Projection(backbone.dim, out)
        self.to(backbone.device)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E), not normalised."""
        return self.VPT_image_trans(self.image_encoder.encode(images).float())


class PixelsAndFeatures(Dataset):
    """Items of `pixels`, each with the banks' features of the very same augmented view, under the banks' names."""

    def __init__(self, pixels: Dataset, banks: Mapping[str, FeatureBank], views: int):
        self.pixels, self.banks, self.views = pixels, banks, views

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: ViewIndex) -> dict:
        view = index.view % self.views
        stored = {name: bank.round(view)["feature"][int(index)] for name, bank in self.banks.items()}
        return self.pixels[ViewIndex(index, view)] | stored


def distil_loader(
    cfg, loader: DataLoader, towers: Mapping[str, object], autocast: Callable = nullcontext
) -> DataLoader:
    """The batches of a training `loader`, with every tower's stored features (B, .) of the same views.

    With FEATURES.VIEWS > 0 the views cycle, for pixels and features alike; with 0 there are as many as epochs.
    autocast: the context in which the towers encode.
    """
    pixels = loader.dataset
    if pixels.seed is None or not hasattr(loader.sampler, "set_epoch"):
        raise UserError("Stored features of the views that are trained on need INPUT.VIEW_SEEDS True")
    if pixels.k_tfm != 1 or isinstance(pixels.transform, list | tuple):
        raise UserError(f"Distillation takes one view an image: DATALOADER.K_TRANSFORMS is {pixels.k_tfm}, expected 1")
    views = cfg.FEATURES.VIEWS or cfg.OPTIM.MAX_EPOCH
    banks = {
        name: FeatureBank(cfg, pixels, tower, rounds=views, workers=loader.num_workers, autocast=autocast)
        for name, tower in towers.items()
    }
    return loader_like(loader, persistent=loader.persistent_workers, dataset=PixelsAndFeatures(pixels, banks, views))
