"""Deep prompts by hooks: the same as towers written out with the prompts in them, and gone after each call."""

import pytest
import torch

from dassl.clip import build_clip
from dassl.clip.tiny.load import random_tiny
from dassl.utils import UserError
from mergetune.models.deep_prompts import DeepPromptedClip, ImagePrompts, TextPrompts, keep_prompts, prompt_sizes
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.open_clip_models import write_open_clip

NAMES = ["red star", "striped circle", "dot"]
SIZES = {"n_image": 3, "n_text": 2, "image_depth": 2, "text_depth": 2}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random small CLIPs: blocks that see (L, N, W) with a mask of their own, (N, L, W), and one given a mask."""
    kinds = ("clip", "siglip", "coca", "eva", "convnext", "roberta")
    folders = {kind: write_open_clip(tmp_path_factory.mktemp(kind), kind) for kind in kinds}
    return {
        "openai": openai_backbone().freeze(),
        "tiny": random_tiny(1, width=64, layers=4, text_width=64, text_layers=4, dim=32).freeze(),
        **{f"open_clip {kind}": build_clip(f"open_clip:{folder}") for kind, folder in folders.items()},
    }


@pytest.fixture(params=["openai", "tiny", "open_clip clip"])
def clip(request, backbones):
    return backbones[request.param]


def prompted(clip, **changes):
    torch.manual_seed(0)
    model = DeepPromptedClip(clip, NAMES, **SIZES | changes)
    for value in model.parameters():
        value.data.normal_()  # prompts as strong as tokens, or a mix-up would hide
    return model


def random_images(clip, count=2):
    return torch.randn(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(3))


def deep(part):
    return {int(j): block.VPT_shallow for j, block in part.transformer.resblocks.items()}


def through(blocks, x, change, **given):
    """x (B, L, W) through the blocks, changed before each."""
    for j, block in enumerate(blocks):
        x = change(j, x)
        x = block.module(x, **given) if block.batch_first else block.module(x.transpose(0, 1), **given).transpose(0, 1)
    return x


def plain_image(clip, prompts, images):
    """The image tower written out: patches, class token, positions, prompts, norm, blocks, class token."""
    visual, shown = clip.module.visual, {}
    handle = visual.ln_pre.register_forward_pre_hook(lambda _, inputs: shown.update(x=inputs[0]))
    clip.encode_image(images)
    handle.remove()
    x = visual.ln_pre(torch.cat([shown["x"], prompts.VPT.expand(len(images), -1, -1)], dim=1))
    own = deep(prompts)

    def change(j, x):
        return torch.cat([x[:, : -prompts.count], own[j].expand(len(x), -1, -1)], 1) if j in own else x

    return visual.ln_post(through(clip.image_blocks, x, change)[:, 0]) @ visual.proj


def plain_text(clip, model):
    """The text tower written out, all positions."""
    tower, own, n = clip.text_tower, deep(model.text_encoder), model.prompt_learner.n_ctx
    tokens = clip.tokenize([f"{' '.join(['a'] * n)} {name}." for name in NAMES])
    x = torch.cat([clip.embed(tokens)[:, :1], model.prompt_learner.ctx.expand(len(NAMES), -1, -1)], 1)
    x = torch.cat([x, clip.embed(tokens)[:, 1 + n :]], 1) + tower.positional_embedding

    def change(j, x):
        return torch.cat([x[:, :1], own[j].expand(len(x), -1, -1), x[:, 1 + n :]], 1) if j in own else x

    masked = {"attn_mask": tower.attn_mask} if torch.is_tensor(getattr(tower, "attn_mask", None)) else {}
    x = tower.ln_final(through(clip.text_blocks, x, change, **masked))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ tower.text_projection


def agree(clip, call, plain, model):
    """Equal outputs and equal gradients of the prompts."""
    ours, theirs = call(), plain()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    weights = torch.randn_like(ours)
    params = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), params),
        torch.autograd.grad((theirs * weights).sum(), params),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_an_image_tower_with_prompts_is_the_patched_tower(clip):
    model = prompted(clip).image_encoder
    images = random_images(clip)
    agree(clip, lambda: model.encode(images), lambda: plain_image(clip, model, images), model)


def test_a_text_tower_with_prompts_is_the_patched_tower(clip):
    model = prompted(clip)
    model.image_encoder = None  # it takes no part in this
    agree(clip, model.encode_classes, lambda: plain_text(clip, model), model)


@pytest.mark.parametrize("depth", [1, 4])
def test_depth_counts_blocks_from_the_first(backbones, depth):
    model = prompted(backbones["tiny"], image_depth=depth, text_depth=depth)
    images = random_images(backbones["tiny"])
    assert sorted(deep(model.image_encoder)) == list(range(1, depth))
    torch.testing.assert_close(
        model.encode_image(images), plain_image(backbones["tiny"], model.image_encoder, images), rtol=1e-4, atol=2e-5
    )
    torch.testing.assert_close(model.encode_classes(), plain_text(backbones["tiny"], model), rtol=1e-4, atol=2e-5)


def test_the_backbone_is_as_before_after_a_call_and_after_a_failed_one(clip):
    model, images, tokens = prompted(clip), random_images(clip), clip.tokenize(["a dot"])
    before = clip.encode_image(images), clip.encode_text(tokens)
    model.encode_image(images)
    model.encode_classes()
    with pytest.raises(RuntimeError):
        model.encode_image(images[:, :2])
    for now, then in zip((clip.encode_image(images), clip.encode_text(tokens)), before, strict=True):
        assert torch.equal(now, then)


def test_two_owners_of_one_backbone_do_not_meet(clip):
    first, second, images = prompted(clip), prompted(clip, n_image=1), random_images(clip)
    alone = first.encode_image(images)
    second.encode_image(images)
    assert torch.equal(first.encode_image(images), alone)


def test_a_tower_that_pools_its_tokens_does_not_pool_the_prompts(backbones):
    """SigLIP's image tower: the pool sees the patches alone, changed by the prompts; a text tower without start."""
    clip = backbones["open_clip siglip"]
    seen = []
    handle = clip.module.visual.trunk.attn_pool.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    prompts, images = ImagePrompts(clip, 2, 3), random_images(clip, 1)
    plain = clip.encode_image(images)
    with_prompts = prompts.encode(images)
    handle.remove()
    assert seen[0] == seen[1]
    assert (plain - with_prompts).abs().max() > 0
    assert TextPrompts(clip, 2, 1).places == slice(clip.start_tokens, clip.start_tokens + 2)


def test_an_attentional_pool_of_tokens_works_too(backbones):
    clip = backbones["open_clip coca"]
    model, images = prompted(clip), random_images(clip)
    plain = clip.encode_image(images), clip.encode_text(clip.tokenize(["a dot"]))
    assert model.encode_image(images).shape == plain[0].shape
    assert model.encode_classes().shape == (3, clip.dim)
    assert torch.equal(clip.encode_image(images), plain[0])


def test_state_dicts_have_the_names_of_other_peoples_files(backbones):
    model = prompted(backbones["tiny"], image_depth=3, text_depth=2)
    assert sorted(model.state_dict()) == [
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
        "prompt_learner.ctx",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
    ]
    assert prompt_sizes(model.state_dict()) == {"n_image": 3, "n_text": 2, "image_depth": 3, "text_depth": 2}
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(model.state_dict())


def test_clips_own_weights_in_a_file_are_dropped_and_nothing_else(backbones):
    own = prompted(backbones["tiny"]).state_dict()
    foreign = {
        "image_encoder.conv1.weight": torch.zeros(1),
        "image_encoder.transformer.resblocks.0.ln_1.weight": torch.zeros(1),
        "text_encoder.ln_final.bias": torch.zeros(1),
        "prompt_learner.ZS_image_encoder.proj": torch.zeros(1),
        "logit_scale": torch.zeros(()),
    }
    assert keep_prompts(foreign | own).keys() == own.keys()
    assert keep_prompts({"VPT_image_trans.conv1.0.weight": 1, "head.logit_scales": 1}).keys() == {
        "VPT_image_trans.conv1.0.weight",
        "head.logit_scales",
    }


def test_maples_prompts_are_ivlps(backbones):
    """MaPLe's image prompts are linear maps of its text prompts."""
    clip, name = backbones["tiny"], "prompt_learner."
    g = torch.Generator().manual_seed(0)
    state = {
        f"{name}ctx": torch.randn(2, 64, generator=g),
        f"{name}proj.weight": torch.randn(64, 64, generator=g),
        f"{name}proj.bias": torch.randn(64, generator=g),
        f"{name}compound_prompts_text.0": torch.randn(2, 64, generator=g),
        f"{name}compound_prompt_projections.0.weight": torch.randn(64, 64, generator=g),
        f"{name}compound_prompt_projections.0.bias": torch.randn(64, generator=g),
        "text_encoder.positional_embedding": torch.zeros(77, 64),
    }
    maple = dict(state)
    found = keep_prompts(state)
    model = prompted(clip, n_image=2)
    assert found.keys() == model.state_dict().keys()
    first = maple[f"{name}ctx"] @ maple[f"{name}proj.weight"].T + maple[f"{name}proj.bias"]
    torch.testing.assert_close(found["image_encoder.VPT"], first)
    key = f"{name}compound_prompt_projections.0"
    second = maple[f"{name}compound_prompts_text.0"] @ maple[f"{key}.weight"].T + maple[f"{key}.bias"]
    torch.testing.assert_close(found["image_encoder.transformer.resblocks.1.VPT_shallow"], second)
    model.load_state_dict(found)
    del maple[f"{key}.bias"]
    with pytest.raises(UserError, match="compound_prompt_projections.0.bias"):
        keep_prompts(maple)


def test_what_cannot_take_prompts_is_refused(backbones):
    tiny, convolutional = backbones["tiny"], openai_backbone("resnet")
    with pytest.raises(UserError, match="up to 5, but the image tower of tiny-random has 4"):
        ImagePrompts(tiny, 2, 5)
    with pytest.raises(UserError, match="up to 9, but the text tower of .* has 4"):
        TextPrompts(tiny, 2, 9)
    with pytest.raises(UserError, match="the image tower of .* has no transformer blocks"):
        ImagePrompts(convolutional, 2, 2)
    with pytest.raises(UserError, match="the image tower of .* has no transformer blocks"):
        ImagePrompts(backbones["open_clip convnext"], 2, 2)
    with pytest.raises(UserError, match="rotates every token by its place"):
        ImagePrompts(backbones["open_clip eva"], 2, 2)
    with pytest.raises(UserError, match="text"):
        DeepPromptedClip(backbones["open_clip roberta"], NAMES, **SIZES)
