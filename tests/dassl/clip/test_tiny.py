"""The tiny CLIP: its words, its interface, and that the script in the repository makes the shipped weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tools.make_tiny_clip import training as script
from tools.make_tiny_clip.images import example
from torch.nn import functional as F

from dassl.clip import build_clip, cosine_logits, text_classifier
from dassl.clip.tiny import load_tiny, random_tiny
from dassl.clip.tiny.load import WEIGHTS
from dassl.clip.tiny.tokenizer import CLOSE, OPEN, PAD, START, UNKNOWN, Tokenizer, tokenizer
from dassl.utils import UserError, sha256_file
from datasets.toy.world import WORLD


@pytest.fixture(scope="module")
def tiny():
    return load_tiny()


# ---- words ---------------------------------------------------------------------------------------------------


def test_unknown_words_are_spelled_and_known_ones_are_not():
    t = Tokenizer(["red", "star"])
    assert t.encode("red star") == [START, t.ids["red"], t.ids["star"], t.end]
    assert t.encode("axe") == [START, OPEN, t.ids["a"], t.ids["x"], t.ids["e"], CLOSE, t.end]
    assert t.encode("letter a")[-2] == t.ids["a"]
    assert t.encode("Étoile_RED") == [*t.encode("etoile")[:-1], t.ids["red"], t.end]
    assert t.encode("√ red") == [START, UNKNOWN, t.ids["red"], t.end]
    assert t.encode("red star", spell=lambda word: word == "red") == [
        START, OPEN, t.ids["r"], t.ids["e"], t.ids["d"], CLOSE, t.ids["star"], t.end]  # fmt: skip


def test_the_end_token_is_the_highest():
    words = tokenizer()
    assert words.end == max(words.encode("a photo of something unheard of")) == words.size - 1
    assert len(set(words.pieces)) == len(words.pieces)


def test_class_names_and_templates_need_no_spelling(tiny):
    for toy in WORLD.values():
        texts = [template.format(name) for template in (toy.template, "a photo of a {}.") for name in toy.classnames]
        tokens = tiny.tokenize(texts)
        assert not ((tokens == OPEN) | (tokens == UNKNOWN)).any(), toy.name


def test_tokenise_pads_counts_and_refuses(tiny):
    tokens = tiny.tokenize(["a star", "a photo of a star"])
    assert tokens.shape == (2, 77) and tokens.dtype == torch.int64 and (tokens[0, 4:] == PAD).all()
    assert tiny.token_counts(["a star", "a photo of a star", "axe"]) == [2, 5, 5]
    with pytest.raises(UserError, match="red red"):
        tiny.tokenize(["red " * 80])


# ---- interface -------------------------------------------------------------------------------------------------


def test_short_texts_equal_full_ones(tiny):
    tokens = tiny.tokenize(["a photo of a red star", "a sketch of an axe in a box"])
    with torch.no_grad():
        full = tiny.module.encode_text(tokens)
        short = tiny.module.encode_text(tokens[:, : int(tiny.lengths(tokens).max())])
        through = tiny.encode_text_from_embeddings(tiny.embed(tokens), tokens)
    assert torch.allclose(full, short, atol=1e-5) and torch.allclose(full, through, atol=1e-5)


def test_text_is_embedded_once_a_call(tiny):
    calls = []
    handle = tiny.module.token_embedding.register_forward_hook(lambda *_: calls.append(1))
    tiny.encode_text(tiny.tokenize(["a star"]))
    handle.remove()
    assert len(calls) == 1


def test_what_stands_behind_the_end_changes_nothing(tiny):
    tokens = tiny.tokenize(["a star"])
    dirty = tokens.clone()
    dirty[0, 10:] = START
    assert torch.allclose(tiny.module.encode_text(tokens), tiny.module.encode_text(dirty), atol=1e-6)


def test_blocks_see_what_they_say(tiny):
    assert len(tiny.image_blocks) == 6 and len(tiny.text_blocks) == 4
    for blocks, call, length in (
        (tiny.image_blocks, lambda: tiny.encode_image(torch.zeros(3, 3, 32, 32)), 17),
        (tiny.text_blocks, lambda: tiny.module.encode_text(tiny.tokenize(["a star"] * 3)), 77),
    ):
        for block in blocks:
            shapes = []
            handle = block.module.register_forward_pre_hook(lambda _, args, seen=shapes: seen.append(args[0].shape))
            call()
            handle.remove()
            assert block.batch_first and shapes == [(3, length, block.width)]
            assert block.norm is block.module.ln_1


def test_what_the_weights_say(tiny):
    assert (tiny.dim, tiny.width, tiny.context_length, tiny.image_size) == (128, 128, 77, 32)
    assert tiny.dtype == torch.float32 and tiny.causal and tiny.start_tokens == 1 and tiny.activation == "gelu"
    assert 1 < tiny.logit_scale.item() <= 100.1
    assert not any(p.requires_grad for p in tiny.module.parameters()) and not tiny.module.training
    assert tiny.digest == sha256_file(WEIGHTS) and WEIGHTS.stat().st_size < 6e6
    assert all(torch.isfinite(p).all() for p in tiny.module.parameters())
    assert load_tiny(precision="fp16").dtype == torch.float16


def test_registered_by_its_name(tiny):
    built = build_clip("tiny")
    tokens = tiny.tokenize(["a star"])
    assert torch.equal(built.encode_text(tokens), tiny.encode_text(tokens))


def test_random_weights_come_from_their_seed_and_touch_no_stream():
    before = torch.get_rng_state()
    one, same, other = (random_tiny(seed, layers=2, text_layers=1, dim=16) for seed in (0, 0, 1))
    load_tiny()
    assert torch.equal(before, torch.get_rng_state())
    assert one.digest == same.digest != other.digest and one.dim == 16
    assert len(one.image_blocks) == 2 and len(one.text_blocks) == 1
    assert all(p.requires_grad for p in one.module.parameters())


# ---- training ------------------------------------------------------------------------------------------------


def test_equal_captions_are_no_negatives():
    image = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    same = image.clone()
    same[1] = image[0]
    loss, hit = script.contrastive_loss(same, same, 100.0, ["a star", "a star", "a moon"])
    apart, _ = script.contrastive_loss(same, same, 100.0, ["a star", "one star", "a moon"])
    assert hit == 1 and loss == pytest.approx(np.log(2) * 2 / 3, abs=1e-3) and apart >= loss


def test_the_script_makes_the_first_losses_of_the_shipped_log():
    """Four steps on the first chunk of images; two runs with one thread agree to every digit."""
    shipped = json.loads(script.LOG.read_text())
    assert shipped["plan"] == vars(script.PLAN)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, log = script.train(stop=4)
    finally:
        torch.set_num_threads(threads)
    made, expected = ([loss for _, loss, _ in steps[:4]] for steps in (log["steps"], shipped["steps"]))
    assert made == pytest.approx(expected, abs=0.01)  # from 5.78 to 5.57 in these steps, and no further in ten more
    assert shipped["steps"][-1][0] == script.PLAN.steps


# ---- what it has learned -----------------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(tiny, toy, count):
    images = np.stack([toy.image(c, "val", i) for c in toy.classnames for i in range(count)])
    labels = torch.arange(len(toy.classnames)).repeat_interleave(count)
    text = text_classifier(tiny, toy.classnames, "a photo of a {}.")
    logits = cosine_logits(tiny.encode_image(script.to_pixels(images)), text, tiny.logit_scale)
    return (logits.argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("name, least", [("ToyObjects", 0.6), ("ToyScenes", 0.9), ("ToyShapes", 0.6),
                                         ("ToyPairs", 0.5), ("ToyPositions", 0.8)])  # fmt: skip
def test_zero_shot_in_the_pretraining_style(tiny, name, least):
    """Composed classes (objects, pairs) were never seen in pretraining."""
    assert accuracy(tiny, replace(WORLD[name], strength=0.0), 4) >= least


@torch.no_grad()
def test_captions_of_new_images_are_found(tiny):
    pairs = [example(99, i) for i in range(128)]
    pixels = script.to_pixels(np.stack([image for image, _ in pairs]))
    text = tiny.encode_text(script.to_tokens([captions[0] for _, captions in pairs]))
    nearest = cosine_logits(tiny.encode_image(pixels), text, 1.0).argmax(1)
    assert (nearest == torch.arange(128)).float().mean() > 0.4
