"""Texts that begin alike: what they share runs once, nothing is padded, and features are those of whole prompts."""

import contextlib
import copy
import functools
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from dassl.clip import build_clip, positionwise, shared_prefix, text_classifier
from dassl.clip.shared_prefix import layout_of
from dassl.clip.tiny import random_tiny
from mergetune.lmc import interpolate
from mergetune.models.adapters import MultiModalAdapters
from mergetune.models.deep_prompts import DeepPromptedClip
from mergetune.models.prompts import PromptLearner
from mergetune.stage2 import swapped_parameters, trainable
from tests.fixtures.clip_files import cast, openai_backbone
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401  a fixture
from tests.fixtures.rounding import tower_rounding

NAMES = ["red star", "cat", "pale blue cat", "long and winding road", "green star", "a cat on a mat by a red door"]
MANY = [f"{name} {more}" for name, more in itertools.product(NAMES, ["cat", "red cat", "star", "blue", "a", "road"])]
SMALL = {"dim": 32, "image_size": 32, "width": 32, "layers": 2, "heads": 2, "text_width": 32, "text_layers": 3}
MEMORY = [(0, False), (4, False), (0, True), (5, True)]  # text_chunk, checkpoint_blocks


@pytest.fixture(scope="module")
def clips(open_clip_folder):  # noqa: F811
    """`clips(kind)`: a small random CLIP, frozen, built once."""

    @functools.cache
    def build(kind):
        if kind in ("openai", "tiny"):
            return openai_backbone() if kind == "openai" else random_tiny(**SMALL)
        return build_clip(f"open_clip:{open_clip_folder(kind)}")

    return lambda kind: build(kind).freeze()


# Methods: a CLIP and class names -> (what trains, a function that gives class vectors (C, D), shared positions)


def coop(clip, names, **settings):
    model = PromptLearner(clip, names, **({"n_ctx": 4} | settings))
    return model, lambda: clip.encode_text_from_embeddings(model(), model.tokens, model.shared), model.shared


def coop_path(clip, names):
    model, encode, shared = coop(clip, names)
    others = {name: value.detach() + 0.1 for name, value in trainable(model).items()}

    def between():
        with swapped_parameters(model, interpolate(others, trainable(model), 0.3)):
            return encode()

    return model, between, shared


def texts(clip, names):
    return clip.shorten(clip.tokenize([f"a photo of a {name}." for name in names]))


def mma(clip, names):
    model, tokens = MultiModalAdapters(clip, first=1, last=2, dim=8, scale=0.5), texts(clip, names)

    def features():
        with model.attached(clip):
            return clip.encode_text(tokens, shared=None)

    return model, features, clip.start_tokens + 4


def deep(clip, names):
    model = DeepPromptedClip(clip, names, n_image=1, n_text=3, image_depth=1, text_depth=2)
    return model, model.encode_classes, clip.start_tokens + 3


def full(clip, names):
    tokens = texts(clip, names)
    clip.module.requires_grad_(True)
    return clip.module, lambda: clip.encode_text(tokens, shared=None), clip.start_tokens + 4


METHODS = (coop, coop_path, mma, deep, full)
CASES = [
    *itertools.product(("openai", "tiny"), METHODS),
    *itertools.product(("clip", "custom"), (coop, mma, deep, full)),
]


def outcome(clip, method, names, share=True):
    """Unit class vectors, the gradients of a fixed mixture of them by name, and the positions that ran."""
    torch.manual_seed(1)
    clip.share_prefix = share
    model, features, shared = method(clip, names)
    if model is not clip.module:
        with torch.no_grad():
            for value in trainable(model).values():
                value.add_(0.02 * torch.randn(value.shape))
    with counted(clip) as ran:
        found = F.normalize(features().float(), dim=-1)
        forward = sum(ran)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
        (found * weights).sum().backward()
    gradients = {name: value.grad for name, value in trainable(model).items() if value.grad is not None}
    clip.module.zero_grad()
    clip.freeze()
    return found.detach(), gradients, (forward, sum(ran) - forward, shared)


@contextlib.contextmanager
def counted(clip):
    """The positions that go through the last block, a number a call."""
    ran = []

    def count(_module, inputs):
        ran.append(inputs[0].shape[0] * inputs[0].shape[1])

    handle = clip.text_blocks[-1].norm.register_forward_pre_hook(positionwise(count))
    try:
        yield ran
    finally:
        handle.remove()


def own(clip, names, shared, n_words=4):
    """Positions that are no two texts': counted from the tokens alone."""
    counts = clip.token_counts([f"{name}." for name in names])
    return sum(clip.start_tokens + n_words + count + 1 - shared for count in counts)


def check_equal(found, whole, layers, terms=256):
    """Within 1e-5 of the largest value, and within what so long a sum rounds."""
    assert (found - whole).abs().max() <= min(1e-5 * max(1, terms / 256), 1.0) * whole.abs().max() + 1e-9
    assert (found - whole).abs().max() <= 1e-9 + 2 * tower_rounding(whole, layers, terms)


@pytest.mark.parametrize("names", [NAMES, MANY], ids=["short", "long"])
@pytest.mark.parametrize(("kind", "method"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_features_gradients_and_counts(clips, kind, method, names, monkeypatch):
    """The same as whole prompts, each position once; of a row too long for one call, groups of texts likewise."""
    monkeypatch.setitem(shared_prefix.GROUP, "cpu", 0)  # else some are padded
    monkeypatch.setitem(shared_prefix.SHORT, "cpu", 64 if names is MANY else 256)
    whole, gradients, (ran, *_) = outcome(clips(kind), method, names, share=False)
    assert any(value.abs().max() > 1e-4 for value in gradients.values())
    for chunk, blocks in MEMORY:
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


# What would not be the same on a packed row


def shift(states):
    """Another number at each position and text: nothing that could be applied to a packed row."""
    return states + 0.1 * torch.arange(states.shape[0] * states.shape[1]).view(*states.shape[:2], 1) / states.numel()


def forward_hook(module):
    return module.register_forward_hook(lambda _, __, output: shift(output) if torch.is_tensor(output) else None)


def pre_hook(module):
    return module.register_forward_pre_hook(
        lambda _, inputs: (shift(inputs[0]), *inputs[1:]) if inputs[0].is_floating_point() else None
    )


def backward_hook(module):
    return module.register_full_backward_hook(
        lambda _, gradients, __: tuple(None if g is None else shift(g) if g.dim() == 3 else g for g in gradients)
    )


def backward_pre_hook(module):
    return module.register_full_backward_pre_hook(
        lambda _, gradients: tuple(None if g is None else shift(g) if g.dim() == 3 else g for g in gradients)
    )


HOOKS = (forward_hook, pre_hook, backward_hook, backward_pre_hook)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # on tokens, which need no gradient
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("kind", ["openai", "tiny", "clip"])
def test_a_strangers_hook_sees_whole_prompts(clips, kind, hook):
    clip = clips(kind)
    modules = {id(m): m for child in clip.text_tower.children() for m in child.modules()}
    inside = [m for m in modules.values() if not any(m is v for v in clip.module.visual.modules())]
    assert len(inside) > 20
    for module in inside:
        handle = hook(module)
        try:
            whole, gradients, (ran, *_) = outcome(clip, coop, NAMES, share=False)
            found, ours, (forward, *_) = outcome(clip, coop, NAMES)
        finally:
            handle.remove()
        assert forward == ran and torch.equal(found, whole) and torch.equal(ours["ctx"], gradients["ctx"])
    assert outcome(clip, coop, NAMES)[2][0] < ran, "without a hook it is packed again"


REGISTERS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("register", REGISTERS)
def test_a_global_hook_sees_whole_prompts(clips, register):
    clip, seen = clips("tiny"), []
    handle = getattr(torch_module, f"register_module_{register}")(lambda module, *_: seen.append(module))
    try:
        with contextlib.suppress(TypeError):
            _, _, (ran, *_) = outcome(clip, coop, NAMES, share=False)
            _, _, (forward, *_) = outcome(clip, coop, NAMES)
    finally:
        handle.remove()
    assert seen and forward == ran


def test_torchs_own_counter_only_looks_on(clips):
    """FlopCounterMode has global hooks; what it counts is the packed pass: products fall as the positions do."""
    clip, flops, positions = clips("openai"), {}, {}
    for share in (False, True):
        with FlopCounterMode(display=False) as counter:
            positions[share] = outcome(clip, coop, NAMES, share)[2][0]
        flops[share] = counter.get_total_flops()
    assert flops[True] / flops[False] == pytest.approx(positions[True] / positions[False], rel=0.1)


class Mixing(nn.Module):
    """An MLP that mixes positions."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x) + x.mean(dim=(0, 1), keepdim=True)


class OwnBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.attn, self.mlp, self.ln_1, self.ln_2 = block.attn, block.mlp, block.ln_1, block.ln_2
        self.block = [block]

    def forward(self, x):
        return self.block[0](x) + x.mean(dim=0, keepdim=True)


def exchanged_mlp(clip):
    clip.text_blocks[1].module.mlp = Mixing(clip.text_blocks[1].module.mlp)


def exchanged_block(clip):
    clip.module.transformer.resblocks[1] = OwnBlock(clip.module.transformer.resblocks[1])


def own_forward(clip):
    block = clip.text_blocks[1].module
    block.forward = lambda x, forward=block.forward: forward(x) + x.mean(dim=0, keepdim=True)


def subclass(clip):
    kind = type(clip.module)
    clip.module.__class__ = type("Mine", (kind,), {"encode_text": lambda self, t: 2 * kind.encode_text(self, t)})


@pytest.mark.parametrize("change", [exchanged_mlp, exchanged_block, own_forward, subclass], ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["openai", "tiny"])
def test_a_tower_of_another_make_runs_whole_prompts(clips, kind, change):
    clip = copy.copy(clips(kind))
    clip.module = copy.deepcopy(clip.module)
    tokens = texts(clip, NAMES)
    plain = clip.encode_text(tokens)
    assert layout_of(clip, tokens, None)
    change(clip)
    assert layout_of(clip, tokens, None) is None
    whole = clip.encode_text(tokens)
    assert torch.equal(clip.encode_text(tokens, shared=None), whole) and not torch.allclose(whole, plain, atol=1e-3)


def test_towers_that_read_both_sides_run_whole_prompts(clips):
    clip = clips("siglip")
    tokens = clip.tokenize([f"a photo of a {name}." for name in NAMES])
    assert torch.equal(clip.encode_text(tokens, shared=5), clip.encode_text(tokens))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("kind", ["openai", "tiny"])
def test_parametrised_weights_are_read(clips, kind):
    clip = copy.copy(clips(kind))
    clip.module = copy.deepcopy(clip.module)
    block = clip.text_blocks[0].module
    layers = (block.attn.qkv, block.mlp[0]) if kind == "tiny" else (block.attn, block.mlp.c_fc)
    before = outcome(clip, coop, NAMES)[0]
    for layer in layers:
        parametrize.register_parametrization(layer, "in_proj_weight" if layer is block.attn else "weight", Doubled())
    whole, gradients, (ran, *_) = outcome(clip, coop, NAMES, share=False)
    found, ours, (forward, *_) = outcome(clip, coop, NAMES)
    assert forward < ran and (found - before).abs().max() > 1e-3
    check_equal(found, whole, len(clip.text_blocks))
    assert (ours["ctx"] - gradients["ctx"]).abs().max() <= 1e-6 + 1e-5 * gradients["ctx"].abs().max()


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
