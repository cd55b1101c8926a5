"""The CLIP seam: what every backend owes a trainer, on small random models."""

import pytest
import torch
from torch.nn import functional as F

from dassl.clip import (
    ClipBackbone,
    Preprocess,
    build_clip,
    build_clip_from_cfg,
    cached_clip,
    check_input,
    cosine_logits,
    tensor_digest,
    text_classifier,
)
from dassl.clip.openai import OpenAIClip
from dassl.config import get_cfg_default
from dassl.utils import UserError
from tests.fixtures.clip_files import openai_backbone, random_module
from tests.fixtures.rounding import tower_rounding

TEXTS = ["a photo of a cat", "a red star", "two dogs, on a long and winding road"]


def random_tiny():
    from dassl.clip.tiny import random_tiny

    return random_tiny()


BACKBONES = {"vit": openai_backbone, "resnet": lambda: openai_backbone("resnet"), "tiny": random_tiny}


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return BACKBONES[request.param]().freeze()


def gradients(backbone, embeddings, tokens):
    """Features of embeddings, and the gradient of a fixed mixture of them."""
    embeddings = embeddings.clone().requires_grad_()
    features = backbone.encode_text_from_embeddings(embeddings, tokens)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    (F.normalize(features, dim=-1) * weights).mean().backward()
    return features.detach(), embeddings.grad


def test_sizes_come_from_the_model(backbone):
    side, tokens = backbone.image_size, backbone.tokenize(TEXTS)
    assert tokens.shape == (3, backbone.context_length) and tokens.dtype == torch.int64
    assert backbone.embed(tokens).shape == (3, backbone.context_length, backbone.width)
    assert backbone.encode_image(torch.zeros(2, 3, side, side)).shape == (2, backbone.dim)
    assert backbone.encode_text(tokens).shape == (3, backbone.dim)
    assert backbone.logit_scale.shape == () and backbone.logit_scale > 1 and backbone.logit_bias == 0
    backbone.require_embeddings()
    assert backbone.dtype == torch.float32 and backbone.device.type == "cpu"


def test_the_start_tokens_stand_before_every_text(backbone):
    first, second = backbone.tokenize(["cat", "two red stars"])
    same = (first == second).tolist()
    assert all(same[: backbone.start_tokens]) and not same[backbone.start_tokens]
    counts = backbone.token_counts(["cat", "two red stars"])
    lengths = backbone.lengths(torch.stack([first, second]))
    assert counts == [length - backbone.start_tokens - 1 for length in lengths]


@pytest.mark.parametrize("short", [False, True])
def test_text_from_embeddings_is_encode_text(backbone, short):
    backbone.short_text = short
    tokens = backbone.tokenize(TEXTS)
    embedded = backbone.encode_text_from_embeddings(backbone.embed(tokens), tokens)
    assert torch.equal(embedded, backbone.encode_text(tokens))
    if not short:
        assert torch.equal(embedded, backbone.module.encode_text(tokens))


def test_short_text_equals_full_text(backbone):
    tokens = backbone.tokenize(TEXTS)
    embeddings = backbone.embed(tokens)
    features, gradient = gradients(backbone, embeddings, tokens)
    backbone.short_text = False
    full_features, full_gradient = gradients(backbone, embeddings, tokens)
    longest = int(backbone.lengths(tokens).max())
    assert longest < 40
    layers = len(backbone.text_blocks)
    assert (features - full_features).abs().max() <= tower_rounding(full_features, layers)
    assert (gradient - full_gradient).abs().max() <= tower_rounding(full_gradient, layers)
    assert gradient[:, :longest].abs().max() > 1e-3 and not gradient[:, longest:].any()


def test_the_tower_runs_at_the_length_of_the_longest_prompt(backbone):
    tokens, block, seen = backbone.tokenize(TEXTS), backbone.text_blocks[0], []
    handle = block.module.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    backbone.encode_text(tokens)
    backbone.short_text = False
    backbone.encode_text(tokens)
    handle.remove()
    length = int(backbone.lengths(tokens).max())
    order = (3, length, block.width) if block.batch_first else (length, 3, block.width)
    assert seen[0] == order
    assert backbone.context_length in seen[1]


def test_tokens_may_be_cut_by_the_caller(backbone):
    tokens = backbone.tokenize(TEXTS)
    short = backbone.shorten(tokens)
    assert short.shape[1] == backbone.lengths(tokens).max()
    assert torch.equal(backbone.encode_text(short), backbone.encode_text(tokens))
    with pytest.raises(UserError, match="no more positions"):
        backbone.encode_text(F.pad(tokens, (0, 1)))


def test_whole_positions_are_put_back_after_an_error(backbone):
    module, tokens = backbone.module, backbone.tokenize(TEXTS)
    names, positions = list(module.state_dict()), module.positional_embedding
    expected = module.encode_text(tokens)

    def fail(*_):
        raise RuntimeError("out of memory, say")

    handle = backbone.text_blocks[1].module.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        backbone.encode_text_from_embeddings(backbone.embed(tokens), tokens)
    handle.remove()
    assert module.positional_embedding is positions and list(module.state_dict()) == names
    assert torch.equal(module.encode_text(tokens), expected)


def test_gradients_reach_whole_positions_in_full_fine_tuning(backbone):
    backbone.module.requires_grad_(True)
    tokens = backbone.tokenize(TEXTS)
    grads = []
    for short in (True, False):
        backbone.short_text = short
        backbone.module.zero_grad()
        F.normalize(backbone.encode_text(tokens), dim=-1).sum(1).square().sum().backward()
        grads.append(backbone.module.positional_embedding.grad.clone())
    assert grads[0].shape == (backbone.context_length, backbone.width) and grads[0].any()
    assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[1].abs().max()


def test_blocks_see_what_they_say(backbone):
    calls = {}
    for tower, blocks in (("image", backbone.image_blocks), ("text", backbone.text_blocks)):
        for number, block in enumerate(blocks):
            block.module.register_forward_hook(
                lambda module, args, out, key=(tower, number): calls.update({key: (args[0], out)})
            )
    side = backbone.image_size
    backbone.encode_image(torch.randn(5, 3, side, side))
    backbone.encode_text(backbone.tokenize(TEXTS))
    assert len(calls) == len(backbone.image_blocks) + len(backbone.text_blocks)
    for (tower, number), (seen, out) in calls.items():
        block = getattr(backbone, f"{tower}_blocks")[number]
        assert seen.shape == out.shape and seen.shape[2] == block.width
        assert seen.shape[0 if block.batch_first else 1] == {"image": 5, "text": 3}[tower]
        assert block.norm.normalized_shape == (block.width,)
        after = [torch.equal(args[0], seen) for args in _inputs(block, seen)]
        assert after[0], "the first norm is the first thing a block applies"


def _inputs(block, seen):
    got = []
    handle = block.norm.register_forward_hook(lambda module, args, out: got.append(args))
    block.module.attn_mask = None  # the clip package's mask is cut to the call; one block alone needs none
    block.module(seen)
    handle.remove()
    return got


def test_a_resnet_has_no_image_blocks():
    assert openai_backbone("resnet").image_blocks == []


def test_wrong_embeddings_name_both_shapes(backbone):
    tokens = backbone.tokenize(TEXTS)
    with pytest.raises(UserError, match=r"shape \(3, 4, \d+\), expected \(3, 77, "):
        backbone.encode_text_from_embeddings(backbone.embed(tokens)[:, :4], tokens)


def test_a_long_text_is_named(backbone):
    with pytest.raises(UserError, match="zebra zebra"):
        backbone.tokenize(["short", "zebra " * 80])


class BothWays(OpenAIClip):
    """A tower that is said to read both sides."""

    causal = False


def test_a_tower_that_reads_both_sides_keeps_its_length():
    module = random_module()
    backbone = BothWays(module, name="both", digest="", activation="gelu", preprocess=Preprocess(32)).freeze()
    tokens = backbone.tokenize(TEXTS)
    assert torch.equal(backbone.shorten(tokens), tokens)
    assert torch.equal(backbone.encode_text(tokens), module.encode_text(tokens))
    with pytest.raises(UserError, match="both: .*cannot be cut"):
        backbone.encode_text(tokens[:, :20])


def test_digests_tell_weights_apart():
    states = [random_module(seed=seed).state_dict() for seed in (0, 0, 1)]
    first, same, other = map(tensor_digest, states)
    assert first == same != other
    changed = dict(states[0])
    changed["logit_scale"] = changed["logit_scale"] + 1e-6
    assert tensor_digest(changed) != first
    renamed = {name.replace("ln_final", "ln_last"): value for name, value in states[0].items()}
    assert tensor_digest(renamed) != first


def test_freeze_stops_gradients_and_training_mode():
    backbone = openai_backbone()
    backbone.module.train()
    assert backbone.freeze() is backbone
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_cosine_logits_normalise_both_sides():
    image, text = torch.randn(4, 8), torch.randn(3, 8)
    logits = cosine_logits(image, text, torch.tensor(10.0))
    expected = 10 * F.cosine_similarity(image[:, None], text[None], dim=-1)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(cosine_logits(7 * image, text / 3, 10.0), logits, atol=1e-5)
    assert cosine_logits(image.bfloat16(), text, 10.0).dtype == torch.float32


def test_text_classifier_keeps_one_template_raw_and_averages_several(backbone):
    names = ["polka_dotted", "star"]
    one = text_classifier(backbone, names, "a photo of a {}.")
    raw = backbone.encode_text(backbone.tokenize(["a photo of a polka dotted.", "a photo of a star."]))
    assert torch.allclose(one, raw, atol=1e-6) and not one.requires_grad
    templates = ["a photo of a {}.", "a sketch of a {}."]
    both = [text_classifier(backbone, names, template) for template in templates]
    mean = torch.stack([F.normalize(part, dim=-1) for part in both]).mean(0)
    assert torch.allclose(text_classifier(backbone, names, templates), mean, atol=1e-6)
    assert torch.allclose(text_classifier(backbone, names, templates, chunk=1), mean, atol=2e-6)
    with pytest.raises(UserError, match="a photo of nothing"):
        text_classifier(backbone, names, ["a photo of nothing"])


def test_build_clip_by_name():
    backbone = build_clip("tiny")
    assert isinstance(backbone, ClipBackbone) and not backbone.module.training
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME = "tiny"
    assert build_clip_from_cfg(cfg, device="cpu").digest == backbone.digest
    assert cached_clip("tiny") is cached_clip("tiny") is not build_clip("tiny")


def test_pixels_that_do_not_fit_the_weights_are_pointed_out(backbone, capsys):
    cfg = get_cfg_default()
    with pytest.raises(UserError, match=r"INPUT.SIZE is \(224, 224\), but \S+ takes "):
        check_input(cfg, backbone)
    cfg.INPUT.SIZE = (backbone.image_size,) * 2
    check_input(cfg, backbone)  # the defaults are ImageNet's
    warning = capsys.readouterr().out
    assert "PIXEL_MEAN (0.485" in warning and "INTERPOLATION bilinear (trained with bicubic)" in warning
    own = backbone.preprocess
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(own.mean), list(own.std)
    cfg.INPUT.INTERPOLATION = own.interpolation
    check_input(cfg, backbone)
    assert not capsys.readouterr().out


def test_building_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_clip("tiny")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["ViT-B-16", "RN5O", "vit_b16", "tinny", ""])
def test_an_unknown_name_lists_the_nearest_and_the_available(name):
    with pytest.raises(UserError, match="nearest: .*available: RN50, .*ViT-B/16.*tiny"):
        build_clip(name)


def test_other_bad_requests():
    with pytest.raises(UserError, match='precision "fp8", expected one of fp32'):
        build_clip("tiny", precision="fp8")
    with pytest.raises(UserError, match="built in and takes no model or file"):
        build_clip("tiny", path="weights.pt")
