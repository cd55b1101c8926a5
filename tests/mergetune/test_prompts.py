"""The learned prompt: what stands where, and what it shares with plain text."""

import pytest
import torch

from dassl.utils import UserError
from mergetune.models.prompts import PromptLearner, context_words, word_context
from mergetune.stage2 import swapped_parameters
from tests.dassl.clip.test_clip import openai_backbone, random_tiny

NAMES = ["cat", "great_white shark", "Zyxgh"]


@pytest.fixture(params=[openai_backbone, random_tiny], ids=["openai", "tiny"])
def clip(request):
    return request.param().freeze()


def features(clip, learner):
    return clip.encode_text_from_embeddings(learner(), learner.tokens)


@pytest.mark.parametrize(
    ("position", "template"),
    [("end", "a photo of a {}."), ("front", "{} a photo of a."), ("middle", "a photo {} of a.")],
)
def test_a_context_of_words_is_the_text_itself(clip, position, template):
    learner = PromptLearner(clip, NAMES, words="a photo of a", position=position)
    texts = [template.format(name.replace("_", " ")) for name in NAMES]
    plain = clip.encode_text(clip.tokenize(texts))
    torch.testing.assert_close(features(clip, learner), plain, rtol=0, atol=2e-6)


def test_only_the_context_trains_and_is_saved(clip):
    learner = PromptLearner(clip, NAMES, n_ctx=3)
    assert list(learner.state_dict()) == ["ctx"]
    assert learner.ctx.shape == (3, clip.width)
    features(clip, learner).square().sum().backward()
    assert learner.ctx.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.module.parameters())


def test_class_specific_contexts_move_their_own_class_only(clip):
    learner = PromptLearner(clip, NAMES, n_ctx=2, class_specific=True)
    assert learner.ctx.shape == (3, 2, clip.width)
    before = features(clip, learner)
    with torch.no_grad():
        learner.ctx[1] += torch.randn(2, clip.width)  # a constant would vanish in the layer norm
    after = features(clip, learner)
    moved = (after - before).abs().amax(1) > 1e-5
    assert moved.tolist() == [False, True, False]


def test_another_context_can_be_tried_without_touching_the_learned_one(clip):
    learner = PromptLearner(clip, NAMES, words="a photo of a")
    kept = learner.ctx.detach().clone()
    with swapped_parameters(learner, {"ctx": torch.randn_like(learner.ctx)}):
        other = features(clip, learner)
    assert not torch.allclose(other, features(clip, learner))
    assert torch.equal(learner.ctx, kept)


def test_words_set_the_number_of_vectors_and_say_so(clip, capsys):
    learner = PromptLearner(clip, NAMES, n_ctx=16, words="this is a")
    assert learner.n_ctx == 3
    assert "N_CTX = 3" in capsys.readouterr().out
    torch.testing.assert_close(learner.ctx.detach(), word_context(clip, "this is a").float())
    PromptLearner(clip, NAMES, n_ctx=3, words="this is a")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "words"), [(True, "a photo of a"), (False, ""), ("", ""), ("a_sketch of", "a sketch of")]
)
def test_ctx_init(given, words):
    assert context_words(given) == words


def test_a_context_longer_than_the_text_is_refused(clip):
    with pytest.raises(UserError):
        PromptLearner(clip, NAMES, n_ctx=100)
