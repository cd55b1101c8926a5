"""MMA's adapters against towers that are patched plainly, their gradients, and what they leave behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl.clip import build_clip
from dassl.clip.tiny import random_tiny
from dassl.utils import UserError
from mergetune.models.adapters import MultiModalAdapters, Scale
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.open_clip_models import write_open_clip

SIZES = {"openai": {"first": 1, "last": 2}, "tiny": {"first": 2, "last": 4}}


def build(kind, scale=0.5, dim=8):
    """A random CLIP, frozen, and adapters on it whose biases are not at 0."""
    clip = (openai_backbone() if kind == "openai" else random_tiny()).freeze()
    torch.manual_seed(3)
    adapters = MultiModalAdapters(clip, dim=dim, scale=scale, **SIZES[kind])
    with torch.no_grad():
        for name, value in adapters.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)
    return clip, adapters


def inputs(clip):
    torch.manual_seed(4)
    size = clip.image_size
    return torch.randn(3, 3, size, size), clip.tokenize(["a photo of a red star.", "two dogs."])


def encode(clip, images, tokens):
    return clip.encode_image(images), clip.encode_text(tokens)


def plain_branch(state, tower, i, x, scale):
    """up(shared(relu(down(x)))) times scale, from the state dict alone."""
    x = F.relu(F.linear(x, state[f"{tower}_adapter.{i}.down.0.weight"], state[f"{tower}_adapter.{i}.down.0.bias"]))
    x = F.relu(F.linear(x, state[f"shared_adapter.{i}.0.weight"], state[f"shared_adapter.{i}.0.bias"]))
    return scale * F.linear(x, state[f"{tower}_adapter.{i}.up.weight"], state[f"{tower}_adapter.{i}.up.bias"])


def patch(clip, state, numbers, scale):
    """Write the adapters into the forward of each block, as the authors do."""
    for tower, blocks in (("visual", clip.image_blocks), ("text", clip.text_blocks)):
        for i in numbers:
            block = blocks[i - 1].module

            def forward(x, block=block, tower=tower, i=i):
                normed = block.ln_1(x)
                attend = getattr(block, "attention", block.attn)
                y = x + attend(normed)
                return y + block.mlp(block.ln_2(y)) + plain_branch(state, tower, i, normed, scale)

            block.forward = forward


@pytest.mark.parametrize("kind", ["openai", "tiny"])
def test_hooks_give_what_a_patched_tower_gives(kind):
    """Outputs, and the gradients of all weights: those at the branch's end are 1 / scale times the plain ones."""
    clip, adapters = build(kind)
    images, tokens = inputs(clip)
    with adapters.attached(clip):
        ours = encode(clip, images, tokens)
    torch.manual_seed(5)
    ends = [torch.randn_like(out) for out in ours]
    got = torch.autograd.grad(ours, list(adapters.parameters()), ends)
    state = {name: value.detach().clone().requires_grad_() for name, value in adapters.named_parameters()}
    patch(clip, state, adapters.numbers, adapters.scale)
    plain = encode(clip, images, tokens)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    expected = torch.autograd.grad(plain, list(state.values()), ends)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one * adapters.scale, other, rtol=1e-3, atol=1e-5)


def test_gradient_scaling_at_a_fixed_gradient():
    """Weights get the gradient of scale 1, what lies below the true one, scale included."""
    _, adapters = build("tiny", scale=0.001)
    parts = adapters.text_adapter["2"], adapters.shared_adapter["2"]
    weights = [*parts[0].parameters(), *parts[1].parameters()]
    x = torch.randn(5, 7, 128, requires_grad=True)
    g = torch.randn(5, 7, 128)  # at the branch's output, the same for both scales
    y = adapters.branch(*parts, x)
    *got, below = torch.autograd.grad(y, [*weights, x], g)
    unscaled = parts[0].up(parts[1](parts[0].down(x)))
    *at_one, below_at_one = torch.autograd.grad(unscaled, [*weights, x], g)
    torch.testing.assert_close(y, 0.001 * unscaled)
    for one, other in zip(got, at_one, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(below, 0.001 * below_at_one)
    assert below.abs().max() > 0


def test_scale_is_two_factors():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = Scale.apply(x, 3.0, 5.0)
    y.sum().backward()
    assert y.tolist() == [3.0, -6.0] and x.grad.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("kind", ["openai", "tiny"])
def test_up_projections_at_zero_are_clip_exactly(kind):
    clip, adapters = build(kind)
    images, tokens = inputs(clip)
    bare = encode(clip, images, tokens)
    with adapters.attached(clip):
        adapted = encode(clip, images, tokens)
    adapters.load_state_dict(adapters.at_zero())
    with adapters.attached(clip):
        zero = encode(clip, images, tokens)
    for one, two, three in zip(bare, adapted, zero, strict=True):
        assert torch.equal(one, three)
        assert not torch.allclose(one, two)


def test_hooks_go_with_the_call_also_after_an_error():
    """The frozen CLIP is shared by the trainers of a process, so nothing may stay on it."""
    clip, adapters = build("tiny")
    images, tokens = inputs(clip)
    bare = encode(clip, images, tokens)
    with pytest.raises(RuntimeError), adapters.attached(clip):
        clip.encode_image(images[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(bare, encode(clip, images, tokens), strict=True))
    assert not any(module._forward_hooks for module in clip.module.modules())
    other = MultiModalAdapters(clip, first=1, last=4, dim=4, scale=1.0)
    with other.attached(clip), adapters.attached(clip):
        both = clip.encode_text(tokens)
    with adapters.attached(clip):
        assert not torch.allclose(both, clip.encode_text(tokens))


def test_each_norm_runs_once_and_frozen_blocks_below_keep_no_graph():
    clip, adapters = build("tiny")
    images, _ = inputs(clip)
    calls, graphs = [], []
    norms = [block.norm.register_forward_hook(lambda *_: calls.append(1)) for block in clip.image_blocks]
    outputs = [
        block.module.register_forward_hook(lambda _m, _i, out: graphs.append(out.requires_grad))
        for block in clip.image_blocks
    ]
    with adapters.attached(clip):
        clip.encode_image(images)
    for handle in norms + outputs:
        handle.remove()
    assert len(calls) == 6
    assert graphs == [False, False, True, True, True, True]  # own hooks run before the adapter's, block 2 shows late


def test_counts_and_keys_at_vit_b16_widths():
    """674,560 trained numbers: text 266,496, visual 399,616, shared 8,448."""

    class Widths:
        name = "ViT-B/16"

        def __init__(self):
            from dassl.clip.backbone import Block

            image, text = nn.LayerNorm(768), nn.LayerNorm(512)
            self.image_blocks = [Block(image, image, 768, False)] * 12
            self.text_blocks = [Block(text, text, 512, False)] * 12

    adapters = MultiModalAdapters(Widths(), first=5, last=12, dim=32, scale=0.001)
    counts = {}
    for name, value in adapters.named_parameters():
        tower = name.split("_")[0]
        counts[tower] = counts.get(tower, 0) + value.numel()
    assert counts == {"text": 266_496, "visual": 399_616, "shared": 8_448}
    shapes = {name: tuple(value.shape) for name, value in adapters.state_dict().items()}
    layers = {"down.0.weight": (32, 512), "down.0.bias": (32,), "up.weight": (512, 32), "up.bias": (512,)}
    expected = {f"text_adapter.{i}.{part}": shape for i in range(5, 13) for part, shape in layers.items()}
    swap = {512: 768}
    expected |= {key.replace("text", "visual"): tuple(swap.get(n, n) for n in shape) for key, shape in expected.items()}
    shared = {"0.weight": (32, 32), "0.bias": (32,)}
    expected |= {f"shared_adapter.{i}.{part}": shape for i in range(5, 13) for part, shape in shared.items()}
    assert shapes == expected


def test_weights_start_kaiming_by_fan_out():
    """Deviation sqrt(2 / outputs), biases at 0."""
    adapters = MultiModalAdapters(random_tiny(width=512, heads=8), first=1, last=1, dim=64, scale=1.0)
    visual = adapters.visual_adapter["1"]
    assert visual.down[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert visual.up.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)
    assert all(not value.any() for name, value in adapters.named_parameters() if name.endswith("bias"))


def test_half_precision_towers_meet_full_adapters():
    clip, adapters = build("tiny", scale=0.1)
    _, tokens = inputs(clip)
    with adapters.attached(clip):
        whole = clip.encode_text(tokens)
        clip.module.bfloat16()
        half = clip.encode_text(tokens)
    assert half.dtype == torch.bfloat16 and adapters.text_adapter["2"].up.weight.dtype == torch.float32
    assert F.cosine_similarity(half.float(), whole, dim=-1).min() > 0.999
    half.float().sum().backward()
    assert adapters.text_adapter["2"].up.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (0, 2, "blocks 0 to 2, expected 1 <= ADAPTER_START"),
        (3, 2, "blocks 3 to 2, expected 1 <= ADAPTER_START"),
        (2, 5, "blocks up to 5, but the text tower of tiny-random has 4 blocks"),
        (5, 12, "blocks up to 12, but the text tower of tiny-random has 4 blocks"),
    ],
)
def test_a_range_beyond_either_tower_is_refused(first, last, message):
    with pytest.raises(UserError, match=message):
        MultiModalAdapters(random_tiny(), first=first, last=last, dim=8, scale=1.0)


def test_towers_without_blocks_are_refused():
    with pytest.raises(UserError, match="the image tower of random has no transformer blocks"):
        MultiModalAdapters(openai_backbone("resnet"), first=1, last=2, dim=8, scale=1.0)


@pytest.mark.parametrize("kind", ["clip", "siglip2", "eva"])
def test_open_clips_towers_take_adapters(tmp_path, kind):
    """Batch-first blocks; those of SigLIP's and EVA's image towers are timm's."""
    clip = build_clip(f"open_clip:{write_open_clip(tmp_path / kind, kind)}")
    adapters = MultiModalAdapters(clip, first=1, last=2, dim=4, scale=0.5)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    tokens = clip.tokenize(["a red star", "a dog"])
    bare = encode(clip, images, tokens)
    with adapters.attached(clip):
        adapted = encode(clip, images, tokens)
        adapters.load_state_dict(adapters.at_zero())
        assert all(torch.equal(a, b) for a, b in zip(bare, encode(clip, images, tokens), strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(bare, adapted, strict=True))


@pytest.mark.parametrize(("kind", "tower"), [("convnext", "image"), ("mt5", "text")])
def test_open_clips_towers_without_blocks_are_refused(tmp_path, kind, tower):
    clip = build_clip(f"open_clip:{write_open_clip(tmp_path / kind, kind)}")
    with pytest.raises(UserError, match=f"the {tower} tower of .* has no transformer blocks"):
        MultiModalAdapters(clip, first=1, last=2, dim=4, scale=0.5)
