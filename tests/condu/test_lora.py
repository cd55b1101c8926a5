"""LoRA on the MLPs, and the three spaces that deltas live in."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from condu.fusion import Fusion
from condu.lora import Lora, first_factor, mlp_layers, update
from condu.tuning import LoraFactors, LoraProduct, Tuning, build_space
from dassl.clip import Preprocess, build_clip
from dassl.clip.openai import OpenAIClip, clip_package
from dassl.clip.tiny import random_tiny
from dassl.config import get_cfg_default
from dassl.engine import add_trainer_nodes
from dassl.utils import UserError
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401  a fixture

SMALL = {"dim": 16, "image_size": 16, "width": 16, "layers": 2, "heads": 2, "text_width": 24, "text_layers": 2}
TEXTS = ["a photo of a cat", "a red star", "two dogs"]


def tiny():
    """A small CLIP of its own, the same one every time; weights as large as trained ones."""
    clip = random_tiny(**SMALL).freeze()
    with torch.no_grad():
        for parameter in clip.module.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return clip


def weights(clip):
    return {name: value.detach().clone() for name, value in clip.module.named_parameters()}


def outputs(clip):
    """Normalised features of fixed images and texts, with gradient, one below the other."""
    side = clip.image_size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    both = clip.encode_image(images), clip.encode_text(clip.tokenize(TEXTS))
    return torch.cat([F.normalize(part.float(), dim=-1) for part in both])


def moved(module, seed=1, size=0.1):
    """Noise on every trainable parameter; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


def space_of(kind, rank=4):
    clip = tiny()
    pretrained = weights(clip)
    return Tuning(clip, pretrained) if kind is Tuning else kind(clip, pretrained, rank)


KINDS = [Tuning, LoraFactors, LoraProduct]
kinds = pytest.mark.parametrize("kind", KINDS)


def filled(space, delta):
    """The plain CLIP that a delta of the space makes."""
    clip = tiny()
    moved(clip.module.requires_grad_(True))  # whatever lay in the slot before
    space.fill(delta, dict(clip.module.named_parameters()))
    return clip


def test_factors_are_those_of_peft():
    """The same A and B in peft's rank-stabilised LoRA with alpha 1: the same outputs and the same gradients."""
    from peft import LoraConfig, inject_adapter_in_model

    ours, theirs = openai_backbone().freeze(), openai_backbone().freeze()
    lora = moved(Lora(mlp_layers(ours), rank=5))
    config = LoraConfig(r=5, lora_alpha=1, use_rslora=True, target_modules=["c_fc", "c_proj"], lora_dropout=0.0)
    inject_adapter_in_model(config, theirs.module)
    pairs = []
    for name, a, b in zip(lora.layers, lora.a, lora.b, strict=True):
        layer = theirs.module.get_submodule(name)
        assert layer.scaling["default"] == pytest.approx(lora.scale) == 5**-0.5
        pairs += [(a, layer.lora_A["default"].weight), (b, layer.lora_B["default"].weight)]
    assert len(pairs) == len(list(lora.parameters())) == sum("lora" in n for n, _ in theirs.module.named_parameters())
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine.t())
    found = []
    for clip in (ours, theirs):
        out = outputs(clip)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        found.append(out.detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert (found[0] - outputs(openai_backbone().freeze()).detach()).abs().max() > 1e-3
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad.t(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_it_starts_at_exactly_clip_and_learns_from_there(rank):
    """Also where the rank is larger than the layers."""
    clip, plain = tiny(), tiny()
    lora = Lora(mlp_layers(clip), rank)
    assert torch.equal(outputs(clip), outputs(plain))
    outputs(clip)[0].sum().backward()
    assert not any(parameter.grad is not None for parameter in clip.module.parameters())
    assert any(b.grad.abs().max() > 0 for b in lora.b) and all(not a.grad.any() for a in lora.a if a.grad is not None)
    assert {tuple(a.shape) for a in lora.a} == {(16, rank), (64, rank), (24, rank), (96, rank)}


def test_the_first_factor_follows_from_the_layers_name():
    before = torch.get_rng_state()
    a = first_factor("visual.transformer.resblocks.0.mlp.c_fc", 400, 30)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(a, first_factor("visual.transformer.resblocks.0.mlp.c_fc", 400, 30))
    assert not torch.equal(a, first_factor("visual.transformer.resblocks.1.mlp.c_fc", 400, 30))
    bound = 1 / math.sqrt(400)  # kaiming_uniform with a = sqrt(5): sqrt(6 / ((1 + 5) fan_in))
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(30, 400), a=math.sqrt(5))
    assert 0.99 * bound < a.abs().max() <= bound and theirs.abs().max() <= bound
    assert a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("clip", {"c_fc", "c_proj"}),
        ("siglip", {"c_fc", "c_proj", "fc1", "fc2"}),  # timm's image tower
        ("eva", {"c_fc", "c_proj", "fc1", "fc2"}),
    ],
)
def test_layers_of_other_families(kind, names, open_clip_folder):  # noqa: F811
    clip = build_clip(f"open_clip:{open_clip_folder(kind)}").freeze()
    layers = mlp_layers(clip)
    assert {name.split(".")[-1] for name in layers} == names
    assert len(layers) == 2 * (len(clip.image_blocks) + len(clip.text_blocks))
    before = outputs(clip)
    lora = Lora(layers, 3)
    assert torch.equal(before, outputs(clip))
    moved(lora)
    assert (before - outputs(clip)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["resnet", "roberta"])
def test_towers_without_mlp_blocks_are_refused(kind, open_clip_folder):  # noqa: F811
    clip = build_clip(f"open_clip:{open_clip_folder(kind)}").freeze()
    with pytest.raises(UserError, match="no transformer blocks with an MLP.*SPACE full"):
        mlp_layers(clip)


def test_on_vit_b16_it_trains_9830400_numbers_at_rank_64():
    """2 layers x 64 x (768 + 3072) x 12 blocks, and 2 x 64 x (512 + 2048) x 12."""
    with torch.device("meta"):
        module = clip_package().model.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    clip = OpenAIClip(module, name="ViT-B/16", digest="", preprocess=Preprocess(224), activation="quickgelu")
    lora = Lora(mlp_layers(clip), 64)
    assert sum(p.numel() for p in lora.parameters()) == 9_830_400 == 2 * 64 * 12 * (768 + 3072 + 512 + 2048)
    assert len(lora.layers) == 48
    # a state of 11 tasks: fp32 unified delta and 11 masks of a bit a number; the product has 12 (2 x 768 x 3072 + ...)
    product = sum(clip.module.get_submodule(name).weight.numel() for name in lora.layers)
    assert 9_830_400 * (4 + 11 / 8) < 53e6 and product == 12 * 2 * (768 * 3072 + 512 * 2048)
    assert product * (4 + 11 / 8) < 450e6


@kinds
def test_a_filled_copy_answers_as_the_trained_one(kind):
    space = space_of(kind)
    trained = space.trained if kind is Tuning else space.clip.module
    moved(space.trained, size=0.05)
    clip = tiny()
    clip.module = trained
    expected = outputs(clip).detach()
    plain = outputs(filled(space, None))
    assert torch.equal(plain, outputs(tiny()))  # pretrained again, to the bit
    assert (expected - plain).abs().max() > 1e-2
    delta = space.delta()
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in delta.values())
    torch.testing.assert_close(outputs(filled(space, delta)), expected, rtol=1e-4, atol=1e-5)
    space.release()
    space.fill(delta, dict(trained.named_parameters()))  # its own copy too, without counting the factors twice
    torch.testing.assert_close(outputs(clip).detach(), expected, rtol=1e-4, atol=1e-5)


@kinds
def test_a_decoupled_task_is_filled_like_its_delta(kind):
    fusion = Fusion()
    for number in range(2):
        space = space_of(kind)
        moved(space.trained, seed=number, size=0.05)
        fusion.absorb(f"task {number}", space.delta())
    clip = tiny()
    moved(clip.module.requires_grad_(True))
    space.fill_task(fusion, "task 1", dict(clip.module.named_parameters()))
    slow = filled(space, fusion.decouple("task 1"))
    for name, value in clip.module.named_parameters():
        torch.testing.assert_close(value, slow.module.get_parameter(name), rtol=1e-6, atol=1e-7)


@kinds
def test_training_goes_on_from_another_expert_and_counts_from_the_pretrained_weights(kind):
    first = space_of(kind)
    moved(first.trained, size=0.05)
    delta = first.delta()
    second = space_of(kind)
    second.start_from(delta)
    for name, value in second.delta().items():
        torch.testing.assert_close(value, delta[name], rtol=1e-5, atol=1e-6)
    moved(second.trained, seed=9, size=0.05)
    clip = tiny()
    clip.module = second.trained if kind is Tuning else second.clip.module
    torch.testing.assert_close(outputs(filled(second, second.delta())), outputs(clip), rtol=1e-4, atol=1e-5)


def test_what_the_deltas_hold():
    full, factors, product = (space_of(kind) for kind in KINDS)
    assert full.delta().keys() == {name for name in weights(tiny()) if name != "logit_scale"}
    layers = list(mlp_layers(tiny()))
    assert set(factors.delta()) == {f"{layer}.lora_{letter}" for layer in layers for letter in "ab"}
    assert set(product.delta()) == {f"{layer}.weight" for layer in layers}
    assert all(not value.any() for space in (full, factors, product) for value in space.delta().values())
    moved(factors.trained), moved(product.trained)
    now = factors.trained.factors()
    for name, value in product.delta().items():
        layer = name.removesuffix(".weight")
        torch.testing.assert_close(value, update(now[layer + ".lora_a"], now[layer + ".lora_b"]))
    assert not full.trained.logit_scale.requires_grad and full.metadata() == {"kind": "full"}
    assert factors.metadata() == {"kind": "lora_factors", "rank": 4, "layers": 8}


@kinds
def test_a_delta_of_another_space_is_refused(kind):
    space = space_of(kind)
    parameters = dict(tiny().module.named_parameters())
    with pytest.raises(UserError, match="none of the space"):
        space.fill({"no.such.weight": torch.ones(2)}, parameters)
    wrong = {name: value[..., :1] for name, value in copy.deepcopy(space.delta()).items()}
    with pytest.raises(UserError, match=space.kind):
        space.fill(wrong, parameters)


def test_the_space_that_the_config_names():
    import condu.trainer  # noqa: F401  brings its keys

    cfg = get_cfg_default()
    add_trainer_nodes(cfg)
    found = []
    for keys in (["SPACE", "full"], ["SPACE", "lora"], ["MERGE_SPACE", "product"]):
        cfg.TRAINER.CONDU.merge_from_list(keys)
        clip = tiny()
        found.append(build_space(cfg, clip, weights(clip)).kind)
    assert found == ["full", "lora_factors", "lora_product"]
