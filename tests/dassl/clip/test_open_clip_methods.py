"""Adapters and deep prompts on open_clip's families: they reach both towers, or are refused with the reason."""

import pytest
import torch

from dassl.clip import build_clip
from dassl.utils import UserError
from mergetune.models.adapters import MultiModalAdapters
from mergetune.models.deep_prompts import DeepPromptedClip
from mergetune.stage2 import swapped_parameters
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401  a fixture

NAMES = ["cat", "red star"]


@pytest.fixture
def backbone(request, open_clip_folder):  # noqa: F811
    return build_clip(f"open_clip:{open_clip_folder(request.param)}").freeze()


def outputs(backbone):
    """Features of two images and two texts."""
    side = backbone.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return backbone.encode_image(images), backbone.encode_text(backbone.tokenize(NAMES))


def moved(before, after):
    return [bool((a - b).abs().max() > 1e-5) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("backbone", ["quickgelu", "eva", "worldwide", "coca", "siglip2"], indirect=True)
def test_adapters_reach_both_towers_and_are_clip_at_zero(backbone):
    adapters = MultiModalAdapters(backbone, first=1, last=2, dim=8, scale=0.5)
    plain = outputs(backbone)
    with adapters.attached(backbone):
        assert moved(plain, outputs(backbone)) == [True, True]
    with swapped_parameters(adapters, adapters.at_zero()), adapters.attached(backbone):
        assert all(torch.equal(a, b) for a, b in zip(plain, outputs(backbone), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, outputs(backbone), strict=True))


@pytest.mark.parametrize("backbone", ["quickgelu", "worldwide", "siglip2"], indirect=True)
def test_deep_prompts_reach_both_towers(backbone):
    prompted = DeepPromptedClip(backbone, NAMES, n_image=2, n_text=2, image_depth=2, text_depth=2)
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    image, text = prompted.encode_image(images), prompted.encode_classes()
    assert moved([backbone.encode_image(images)], [image]) == [True]
    (image.square().sum() + (text * torch.linspace(-1, 1, backbone.dim)).sum()).backward()
    for name, parameter in prompted.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(
    ("backbone", "tower"),
    [("resnet", "image"), ("convnext", "image"), ("roberta", "text"), ("mt5", "text")],
    indirect=["backbone"],
)
def test_towers_without_blocks_are_refused(backbone, tower):
    with pytest.raises(UserError, match=f"the {tower} tower of open_clip:.* has no transformer blocks"):
        MultiModalAdapters(backbone, first=1, last=2, dim=8, scale=0.5)
    with pytest.raises(UserError, match="open_clip:.* (has no transformer blocks|takes tokens, not embeddings)"):
        DeepPromptedClip(backbone, NAMES, n_image=2, n_text=2, image_depth=1, text_depth=1)
