"""Texts that begin alike: what they share runs once, nothing is padded, and features are those of whole prompts."""

import functools
import itertools
import random

import pytest
import torch
import torch.nn.functional as F

from dassl.clip import shared_prefix, text_classifier
from dassl.clip.shared_prefix import layout_of
from tests.fixtures import shared_prefixes
from tests.fixtures.clip_files import cast, openai_backbone
from tests.fixtures.shared_prefixes import (
    CASES,
    MANY,
    MEMORY,
    NAMES,
    check_equal,
    coop,
    counted,
    deep,
    outcome,
    own,
    texts,
)

clips, open_clip_folder = shared_prefixes.clips, shared_prefixes.open_clip_folder  # fixtures


@pytest.mark.parametrize("names", [NAMES, MANY], ids=["short", "long"])
@pytest.mark.parametrize(("kind", "method"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_features_gradients_and_counts(clips, kind, method, names, monkeypatch):
    """The same as whole prompts, each position once; of a row too long for one call, groups of texts likewise."""
    monkeypatch.setitem(shared_prefix.GROUP, "cpu", 0)  # else some are padded
    monkeypatch.setitem(shared_prefix.SHORT, "cpu", 64 if names is MANY else 256)
    whole, gradients, (ran, *_) = outcome(clips(kind), method, names, share=False)
    assert any(value.abs().max() > 1e-4 for value in gradients.values())
    for chunk, blocks in MEMORY if names is NAMES else (MEMORY[0], MEMORY[-1]):
        clip = clips(kind).saving_memory(chunk, blocks)
        found, ours, (forward, backward, shared) = outcome(clip, method, names)
        needed = own(clip, names, shared, n_words=3 if method is deep else 4)
        assert forward == shared + needed < ran, "each position runs once"
        again = (needed if chunk else 0) + (shared + needed if blocks else 0)  # chunks, and blocks within them, again
        assert backward == again, "and once again where that is asked for"
        check_equal(found, whole, len(clip.text_blocks))
        assert ours.keys() == gradients.keys()
        for name, value in gradients.items():
            assert (ours[name] - value).abs().max() <= 1e-6 + 1e-5 * value.abs().max(), (name, chunk, blocks)


@pytest.mark.parametrize("settings", [{"position": "middle"}, {"position": "front"}, {"class_specific": True}], ids=str)
@pytest.mark.parametrize("kind", ["openai", "tiny"])
def test_what_can_be_shared_is(clips, kind, settings):
    method = functools.partial(coop, **settings)
    whole, gradients, _ = outcome(clips(kind), method, NAMES, share=False)
    found, ours, (forward, _, shared) = outcome(clips(kind), method, NAMES)
    assert shared == 1 + 2 * (settings == {"position": "middle"}) and forward == shared + own(
        clips(kind), NAMES, shared
    )
    check_equal(found, whole, len(clips(kind).text_blocks))
    assert (ours["ctx"] - gradients["ctx"]).abs().max() <= 1e-6 + 1e-5 * gradients["ctx"].abs().max()


@pytest.mark.parametrize("kind", ["openai", "tiny", "custom"])
def test_templates_share_their_words(clips, kind):
    clip, templates = clips(kind), ["a photo of a {}.", "{} on a mat.", "a {}."]
    clip.share_prefix = False
    whole = text_classifier(clip, NAMES, templates)
    clip.share_prefix = True
    with counted(clip) as ran:
        found = text_classifier(clip, NAMES, templates)
    # nothing but the start token precedes a name in the second; its words behind the name are each text's own
    expected = []
    for template, words in zip(templates, (4, 0, 1), strict=True):
        counts = clip.token_counts([template.format(name) for name in NAMES])
        expected.append(1 + words + sum(count - words + 1 for count in counts))
    assert ran == expected
    check_equal(found, whole, len(clip.text_blocks))


# Precision


@pytest.mark.parametrize("kind", ["openai", "tiny", "clip"])
def test_under_autocast_gradients_of_many_texts_are_summed_in_full(clips, kind):
    """In bf16 the distance to fp32 is about that of whole prompts: a sum of 144 in bf16 would be far off.

    Not less: there each text rounds by itself, and the mean over texts takes some of that away.
    """
    clip, many = clips(kind), [f"{name} {word}" for name in MANY for word in ("cat", "star", "red", "blue")]
    exact = outcome(clip, coop, many, share=False)[:2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, gradients, _ = outcome(clip, coop, many, share=False)
        found, ours, (forward, *_) = outcome(clip, coop, many)
        tokens = texts(clip, many)
        assert clip.encode_text(tokens).dtype == clip.encode_text(tokens, shared=None).dtype
    assert forward < clip.lengths(tokens).max() * len(many)
    for bf16, ours_bf16, fp32 in ((whole, found, exact[0]), (gradients["ctx"], ours["ctx"], exact[1]["ctx"])):
        assert (ours_bf16 - fp32).norm() <= 1.5 * (bf16 - fp32).norm()


def test_towers_in_half():
    clip = openai_backbone()
    cast(clip.module, "fp16")
    tokens = texts(clip, NAMES)
    whole, packed = clip.encode_text(tokens), clip.encode_text(tokens, shared=None)
    assert packed.dtype == whole.dtype == torch.float16 and layout_of(clip, tokens, None)
    assert F.cosine_similarity(packed.float(), whole.float()).min() > 0.9999


# Layouts


def test_groups_are_the_cheapest():
    """Against every way to cut the rising lengths."""
    draw = random.Random(0)
    for _ in range(30):
        lengths, call = sorted(draw.choices(range(1, 9), k=draw.randint(1, 8))), draw.choice([0, 1, 3, 10])
        places = range(1, len(lengths))
        cuts = [c for n in range(len(lengths)) for c in itertools.combinations(places, n)]
        ways = [[lengths[a:b] for a, b in itertools.pairwise((0, *cut, len(lengths)))] for cut in cuts]
        least = min(sum(len(group) * group[-1] + call for group in way) for way in ways)
        found = shared_prefix._groups(lengths, call)
        assert sum(count * longest + call for count, longest in found) == least
        assert sum(count for count, _ in found) == len(lengths)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_tokens_that_no_version_counts(clips, mode):
    """Written to through .data, or made in inference mode: torch counts neither; a CPU's are read."""
    clip = clips("tiny")
    with mode():
        tokens = texts(clip, NAMES)
        clip.encode_text(tokens, shared=None)
        for _ in range(shared_prefix.KEPT + 1):
            tokens.data[:, 2] += torch.arange(len(tokens))
            check_equal(clip.encode_text(tokens, shared=None), clip.encode_text(tokens), len(clip.text_blocks))
    assert len(shared_prefix._layouts[tokens]) <= shared_prefix.KEPT


def test_tokens_are_looked_at_once(clips, monkeypatch):
    """To look at them waits for a GPU; what has changed is looked at again."""
    clip, tokens, looks = clips("tiny"), texts(clips("tiny"), NAMES), []
    lengths = clip.lengths
    monkeypatch.setattr(clip, "lengths", lambda tokens: looks.append(1) or lengths(tokens))
    first = clip.encode_text(tokens, shared=None)
    assert torch.equal(clip.encode_text(tokens, shared=None), first) and len(looks) == 1
    tokens[:, 6:] = tokens[:, 6:].roll(1, 0)
    rolled = clip.encode_text(tokens, shared=None)
    assert len(looks) == 2 and not torch.allclose(rolled, first)
    clip.share_prefix = False
    check_equal(rolled, clip.encode_text(tokens), len(clip.text_blocks))
    clip.share_prefix = True


def test_texts_that_are_all_the_same(clips):
    """An own position is left to each: the end token's."""
    clip = clips("tiny")
    tokens = texts(clip, ["cat"] * 5)
    with counted(clip) as ran:
        found = clip.encode_text(tokens, shared=None)
    assert ran == [int(clip.lengths(tokens)[0]) - 1 + 5]
    check_equal(found, clip.encode_text(tokens), len(clip.text_blocks))
