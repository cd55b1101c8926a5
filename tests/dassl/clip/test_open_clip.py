"""The seam over open_clip's families, on small random models of open_clip's own configuration; no network."""

import pytest
import torch
from torch.nn import functional as F

from dassl.clip import build_clip
from dassl.utils import UserError, sha256_file
from mergetune.models.prompts import PromptLearner
from tests.fixtures.open_clip_models import (
    BOTH_WAYS,
    CAUSAL,
    MODELS,
    open_clip_folder,  # noqa: F401  a fixture
)
from tests.fixtures.rounding import tower_rounding

TEXTS = ["a photo of a cat", "two dogs, on a long road"]
KINDS = [*CAUSAL, *BOTH_WAYS]
SIZES = {  # D, context length, pixels, image blocks
    "resnet": (32, 77, 64, 0),
    "convnext": (32, 77, 160, 0),
    "eva": (32, 77, 224, 12),
    "coca": (32, 76, 32, 2),
    "worldwide": (32, 64, 32, 2),
    "siglip": (96, 64, 160, 9),
    "siglip2": (96, 64, 160, 9),
}


@pytest.fixture(scope="module")
def loaded(open_clip_folder):  # noqa: F811
    built = {}

    def load(kind):
        if kind not in built:
            built[kind] = build_clip(f"open_clip:{open_clip_folder(kind)}")
        return built[kind]

    return load


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def backbone(loaded, kind):
    backbone = loaded(kind)
    yield backbone
    backbone.short_text = backbone.causal


def images(backbone, count=2):
    side = backbone.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_facts_come_with_the_weights(open_clip_folder, kind, backbone):  # noqa: F811
    siglip = "siglip" in kind
    assert backbone.digest == sha256_file(open_clip_folder(kind) / "open_clip_model.safetensors")
    assert backbone.activation == ("quickgelu" if kind == "quickgelu" else "gelu")
    dim, length, side, blocks = SIZES.get(kind, (32, 77, 32, 2))
    assert (backbone.dim, backbone.context_length, backbone.image_size) == (dim, length, side)
    assert (backbone.width, len(backbone.image_blocks), len(backbone.text_blocks)) == (64, blocks, 2)
    assert backbone.causal == (kind in CAUSAL) and backbone.start_tokens == (0 if siglip else 1)
    assert backbone.preprocess.resize == ("squash" if siglip else "shortest")
    assert backbone.preprocess.mean[0] == (0.5 if siglip else 0.48145466)
    assert backbone.logit_scale.shape == backbone.logit_bias.shape == ()
    assert backbone.encode_image(images(backbone)).shape == (2, dim)
    assert backbone.encode_text(backbone.tokenize(TEXTS)).shape == (2, dim)
    assert not backbone.module.training and not any(p.requires_grad for p in backbone.module.parameters())


def test_logits_are_the_models_own(backbone):
    """scale * cosine + bias is what open_clip's forward gives; softmax over classes does not see the bias."""
    pixels, tokens = images(backbone), backbone.tokenize(TEXTS)
    image, text = (F.normalize(x, dim=-1) for x in (backbone.encode_image(pixels), backbone.encode_text(tokens)))
    cosines = backbone.logit_scale * image @ text.t()
    if hasattr(backbone.module, "get_logits"):  # CoCa has none
        backbone.short_text = False
        own = backbone.module.get_logits(pixels, tokens)[0]
        torch.testing.assert_close(cosines + backbone.logit_bias, own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cosines.softmax(1), own.softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("short", [False, True])
def test_text_from_embeddings_is_encode_text(backbone, short):
    backbone.short_text = short and backbone.causal
    tokens = backbone.tokenize(TEXTS)
    embeddings = backbone.embed(tokens).requires_grad_()
    features = backbone.encode_text_from_embeddings(embeddings, tokens)
    assert torch.equal(features, backbone.encode_text(tokens))
    if not short:
        own = backbone.module.encode_text(tokens)
        assert torch.equal(features, own)
    (features * torch.linspace(-1, 1, backbone.dim)).sum().backward()
    assert embeddings.grad[:, 1].any()


@pytest.mark.parametrize("kind", CAUSAL, indirect=True)
def test_short_text_equals_full_text(backbone):
    results = []
    for short in (True, False):
        backbone.short_text = short
        tokens = backbone.tokenize(TEXTS)
        embeddings = backbone.embed(tokens).requires_grad_()
        features = backbone.encode_text_from_embeddings(embeddings, tokens)
        (F.normalize(features, dim=-1) * torch.linspace(-1, 1, 32)).mean().backward()
        results.append((features.detach(), embeddings.grad))
    (features, gradient), (full_features, full_gradient) = results
    for one, other in ((features, full_features), (gradient, full_gradient)):
        assert (one - other).abs().max() <= tower_rounding(other, len(backbone.text_blocks))
    assert gradient.any()
    whole = backbone.module.encode_text(tokens)  # the tower takes all positions again
    assert torch.equal(whole, full_features)


@pytest.mark.parametrize("kind", BOTH_WAYS, indirect=True)
def test_a_tower_that_reads_both_sides_is_not_cut(backbone):
    tokens = backbone.tokenize(TEXTS)
    assert torch.equal(backbone.shorten(tokens), tokens)
    with pytest.raises(UserError, match="attends to both sides or pools the padding, so texts cannot be cut"):
        backbone.encode_text(tokens[:, :10])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_hooks_at_blocks_see_and_change_what_they_say(backbone, tower):
    """A block gives (N, L, W) or (L, N, W) as declared; what is added there arrives; the norm is its first step."""
    count = {"image": 3, "text": 2}[tower]
    given = images(backbone, count) if tower == "image" else backbone.tokenize(TEXTS)
    encode = backbone.encode_image if tower == "image" else backbone.encode_text
    plain = encode(given)
    for block in getattr(backbone, f"{tower}_blocks")[::4] + getattr(backbone, f"{tower}_blocks")[-1:]:
        seen, normed = [], []

        def add(module, args, out, seen=seen):
            seen += [args[0], out]
            return out + torch.linspace(-1, 1, out.shape[2])  # twice the output would vanish in the next norm

        handles = [
            block.module.register_forward_hook(add),
            block.norm.register_forward_pre_hook(lambda module, args, normed=normed: normed.append(args[0])),
        ]
        changed = encode(given)
        for handle in handles:
            handle.remove()
        assert seen[0].shape == seen[1].shape
        assert seen[0].shape[0 if block.batch_first else 1] == count and seen[0].shape[2] == block.width
        assert block.norm.normalized_shape == (block.width,) and torch.equal(normed[0], seen[0])
        assert (changed - plain).abs().max() > 1e-2
    assert torch.equal(encode(given), plain)


def test_blocks_that_normalise_last_are_no_blocks_of_the_seam(open_clip_folder):  # noqa: F811
    from timm.models.eva import Eva

    backbone = build_clip(f"open_clip:{open_clip_folder('eva')}")
    backbone.module.visual.trunk = Eva(
        img_size=28, patch_size=14, embed_dim=32, depth=2, num_heads=2, use_post_norm=True
    )
    assert backbone.image_blocks == []


def test_a_long_text_is_named_not_cut(backbone):
    room = backbone.context_length - 1 - backbone.start_tokens
    fits = " ".join(["a"] * room)
    assert backbone.token_counts([fits]) == [room]
    with pytest.raises(UserError, match=f'a a" is too long for the {backbone.context_length} tokens'):
        backbone.tokenize(["short", fits + " a"])


def test_a_prompt_of_words_is_the_text_itself(backbone):
    names = ["cat", "great_white shark", "Zyxgh"]
    learner = PromptLearner(backbone, names, words="a photo of a")
    prompts = backbone.encode_text_from_embeddings(learner(), learner.tokens)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    assert torch.equal(prompts, backbone.encode_text(backbone.tokenize(texts)))


@pytest.mark.parametrize("kind", ["clip", "resnet", "eva", "siglip2"], indirect=True)
def test_half_precision_keeps_the_digest(open_clip_folder, kind, backbone):  # noqa: F811
    half = build_clip(f"open_clip:{open_clip_folder(kind)}", precision="fp16")
    assert half.dtype == torch.float16 and half.digest == backbone.digest
    assert half.encode_text(half.tokenize(TEXTS)).dtype == torch.float16
    features = half.encode_image(images(half)).float()
    assert F.cosine_similarity(features, backbone.encode_image(images(backbone))).min() > 0.999


def test_loading_draws_no_random_number(open_clip_folder):  # noqa: F811
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_clip(f"open_clip:{open_clip_folder('clip')}")
    assert torch.equal(torch.rand(1), expected)


def test_every_family_is_tried():
    assert set(KINDS) < set(MODELS)
