"""What would not be the same on a packed row of texts runs on whole prompts: hooks, exchanged modules, wrong claims."""

import contextlib
import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from dassl.clip import positionwise
from mergetune.models.prompts import PromptLearner
from tests.fixtures import shared_prefixes
from tests.fixtures.shared_prefixes import (
    NAMES,
    check_equal,
    coop,
    outcome,
    texts,
)

clips, open_clip_folder = shared_prefixes.clips, shared_prefixes.open_clip_folder  # fixtures


def shift(states):
    """Another number at each position and text: nothing that could be applied to a packed row."""
    places = torch.arange(states[..., 0].numel()).view(*states.shape[:-1], 1)
    return states + 0.1 * places / states.numel()


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
PLACES = [*itertools.product(("openai", "custom"), HOOKS), ("tiny", backward_hook), ("clip", pre_hook)]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # on tokens, which need no gradient
@pytest.mark.parametrize(("kind", "hook"), PLACES, ids=lambda case: getattr(case, "__name__", case))
def test_a_strangers_hook_sees_whole_prompts(clips, kind, hook):
    clip = clips(kind)
    modules = {id(m): m for m in clip.text_tower.modules()}
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


@pytest.mark.parametrize("name", ["transformer", "transformer.resblocks"])
def test_a_hook_on_what_packed_rows_do_not_pass(clips, name):
    """The blocks are called one by one: a hook on what holds them runs on whole prompts, whatever it says of itself."""
    clip, seen = clips("openai"), []
    module = clip.text_tower.get_submodule(name)
    handle = module.register_forward_hook(positionwise(lambda *_: seen.append(1)))
    try:
        outcome(clip, coop, NAMES)
    finally:
        handle.remove()
    assert seen


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

    def forward(self, x, **options):
        return self.block[0](x, **options) + x.mean(dim=0, keepdim=True)


def exchanged_mlp(clip):
    clip.text_blocks[1].module.mlp = Mixing(clip.text_blocks[1].module.mlp)


def exchanged_block(clip):
    blocks = clip.text_tower.transformer.resblocks
    blocks[1] = OwnBlock(blocks[1])


def own_forward(clip):
    block = clip.text_blocks[1].module
    block.forward = lambda x, forward=block.forward, **options: forward(x, **options) + x.mean(dim=0, keepdim=True)


def subclass(clip):
    kind = type(clip.module)
    clip.module.__class__ = type("Mine", (kind,), {"encode_text": lambda self, t: 2 * kind.encode_text(self, t)})


def own_encode_text(clip):
    clip.module.encode_text = lambda tokens, encode=clip.module.encode_text: 2 * encode(tokens)


def exchanged_mask(clip):
    """Both sides are read, in a tower that has a mask: what lies behind the end is seen."""
    for owner in (clip.text_tower, *(block.module for block in clip.text_blocks)):
        if getattr(owner, "attn_mask", None) is not None:
            owner.attn_mask = torch.zeros_like(owner.attn_mask)
        elif hasattr(getattr(owner, "attn", None), "causal"):
            owner.attn.causal = False


def one_attention(clip):
    first, second = clip.text_blocks[:2]
    second.module.attn = first.module.attn


CHANGES = [exchanged_mlp, exchanged_block, own_forward, subclass, own_encode_text, exchanged_mask, one_attention]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["openai", "tiny", "clip", "custom"])
def test_a_tower_of_another_make_runs_whole_prompts(clips, kind, change):
    clip = copy.copy(clips(kind))
    clip.module = copy.deepcopy(clip.module)
    tokens = texts(clip, NAMES)
    plain = clip.encode_text(tokens, shared=None)
    assert not torch.equal(plain, clip.encode_text(tokens)), "packed, it rounds otherwise"
    change(clip)
    whole = clip.encode_text(tokens)
    assert torch.equal(clip.encode_text(tokens, shared=None), whole) and not torch.allclose(whole, plain, atol=1e-3)


@pytest.mark.parametrize("part", ["attn", "ln_1", ""])
@pytest.mark.parametrize("kind", ["openai", "tiny", "clip"])
def test_a_patch_of_a_class_is_run(clips, kind, part, monkeypatch):
    clip = clips(kind)
    owner = type(clip.text_blocks[0].module.get_submodule(part))
    tokens, before = texts(clip, NAMES), owner.forward

    @functools.wraps(before)
    def forward(*inputs, **options):
        outputs = before(*inputs, **options)
        first, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
        first = first + first.roll(1, -1)
        return (first, *rest) if rest else first

    plain = clip.encode_text(tokens)
    monkeypatch.setattr(owner, "forward", forward)
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


class ClassContexts(PromptLearner):
    """A context that depends on the class, made in `forward` from one that does not."""

    def forward(self):
        prompts = super().forward()
        return prompts + 0.1 * torch.arange(len(prompts))[:, None, None]


def test_what_is_not_shared_is_not_taken_for_it(clips):
    """A learner that makes its own prompts claims the start token alone; and a wrong claim is seen, on a CPU."""
    clip = clips("tiny")
    model = ClassContexts(clip, NAMES, n_ctx=4)
    assert (PromptLearner(clip, NAMES, n_ctx=4).shared, model.shared) == (5, 1)
    whole = clip.encode_text_from_embeddings(model(), model.tokens)
    for shared in (5, model.shared):
        assert torch.equal(clip.encode_text_from_embeddings(model(), model.tokens, shared), whole)


def test_tokens_that_an_evaluation_saw_first_can_train(clips):
    clip = clips("tiny")
    model = PromptLearner(clip, NAMES, n_ctx=4)
    tokens = model.tokens.clone()
    with torch.inference_mode():
        clip.encode_text_from_embeddings(model(), tokens, model.shared)
    clip.encode_text_from_embeddings(model(), tokens, model.shared).sum().backward()
    assert model.ctx.grad.abs().max() > 0
