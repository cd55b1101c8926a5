"""The open_clip backend, on small random models through open_clip's own configuration; no network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dassl.clip import build_clip
from dassl.utils import UserError, sha256_file
from tests.fixtures.clip_files import write_open_clip

TEXTS = ["a photo of a cat", "two dogs, on a long road"]
CAUSAL = ["clip", "quickgelu", "custom"]


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: write_open_clip(tmp_path_factory.mktemp(kind), kind) for kind in (*CAUSAL, "siglip")}


@pytest.fixture(params=[*CAUSAL, "siglip"])
def kind(request):
    return request.param


@pytest.fixture
def backbone(folders, kind):
    return build_clip(f"open_clip:{folders[kind]}")


def test_facts_come_with_the_weights(folders, kind, backbone):
    siglip = kind == "siglip"
    assert backbone.digest == sha256_file(folders[kind] / "open_clip_model.safetensors")
    assert backbone.activation == ("quickgelu" if kind == "quickgelu" else "gelu")
    sizes = (192, 64, 16) if siglip else (32, 64, 77)
    assert (backbone.dim, backbone.width, backbone.context_length) == sizes
    assert backbone.causal == (not siglip) and backbone.start_tokens == 1
    assert backbone.preprocess.resize == ("squash" if siglip else "shortest")
    assert backbone.preprocess.mean[0] == (0.5 if siglip else 0.48145466)
    assert backbone.logit_scale.shape == () and backbone.token_counts(TEXTS) == [5, 7]
    side = backbone.image_size
    assert side == (224 if siglip else 32)
    assert backbone.encode_image(torch.zeros(2, 3, side, side)).shape == (2, backbone.dim)
    assert not backbone.module.training and not any(p.requires_grad for p in backbone.module.parameters())


@pytest.mark.parametrize("short", [False, True])
def test_text_from_embeddings_is_encode_text(backbone, short):
    backbone.short_text = short and backbone.causal
    tokens = backbone.tokenise(TEXTS)
    embeddings = backbone.embed(tokens).requires_grad_()
    features = backbone.encode_text_from_embeddings(embeddings, tokens)
    assert torch.equal(features, backbone.encode_text(tokens))
    if not short:
        assert torch.equal(features, backbone.module.encode_text(tokens))
    features.sum().backward()
    assert embeddings.grad[:, 1].any()


@pytest.mark.parametrize("kind", CAUSAL, indirect=True)
def test_short_text_equals_full_text(backbone):
    results = []
    for short in (True, False):
        backbone.short_text = short
        tokens = backbone.tokenise(TEXTS)
        embeddings = backbone.embed(tokens).requires_grad_()
        features = backbone.encode_text_from_embeddings(embeddings, tokens)
        (F.normalize(features, dim=-1) * torch.linspace(-1, 1, 32)).mean().backward()
        results.append((features.detach(), embeddings.grad))
    (features, gradient), (full_features, full_gradient) = results
    assert (features - full_features).abs().max() <= 2e-6
    assert (gradient - full_gradient).abs().max() <= 1e-6 and gradient.any()
    whole = backbone.module.encode_text(tokens)  # the tower takes 77 tokens again
    assert torch.equal(whole, full_features)


@pytest.mark.parametrize("kind", ["siglip"], indirect=True)
def test_a_tower_that_reads_both_sides_is_not_cut(backbone):
    tokens = backbone.tokenise(TEXTS)
    assert torch.equal(backbone.shorten(tokens), tokens)
    with pytest.raises(UserError, match="attends to both sides or pools the padding, so texts cannot be cut"):
        backbone.encode_text(tokens[:, :10])


def test_blocks_see_what_they_say(kind, backbone):
    seen = {}
    for tower in ("image", "text"):
        for number, block in enumerate(getattr(backbone, f"{tower}_blocks")):
            block.module.register_forward_hook(
                lambda module, args, out, key=(tower, number): seen.update({key: args[0].shape})
            )
    backbone.encode_image(torch.zeros(5, 3, backbone.image_size, backbone.image_size))
    backbone.encode_text(backbone.tokenise(TEXTS))
    assert len(seen) == (14 if kind == "siglip" else 4)  # timm's image tower has 12 blocks
    for (tower, number), shape in seen.items():
        block = getattr(backbone, f"{tower}_blocks")[number]
        assert block.batch_first and shape[0] == {"image": 5, "text": 2}[tower]
        assert shape[2] == block.width and block.norm.normalized_shape == (block.width,)
        assert block.norm in (getattr(block.module, "ln_1", None), getattr(block.module, "norm1", None))


def test_a_long_text_is_named_not_cut(backbone):
    fits = "zebra " * (backbone.context_length - 2)
    backbone.tokenise([fits])
    with pytest.raises(UserError, match=f'zebra" is too long for the {backbone.context_length} tokens'):
        backbone.tokenise(["short", fits + "zebra"])


def test_half_precision_keeps_the_digest(folders, kind, backbone):
    half = build_clip(f"open_clip:{folders[kind]}", precision="fp16")
    assert half.dtype == torch.float16 and half.digest == backbone.digest
    assert half.encode_text(half.tokenise(TEXTS)).dtype == torch.float16


def test_loading_draws_no_random_number(folders):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_clip(f"open_clip:{folders['clip']}")
    assert torch.equal(torch.rand(1), expected)


def test_ways_to_name_a_folder_give_the_same_clip(folders):
    folder = str(folders["clip"])
    names = [(f"open_clip:local-dir:{folder}", ""), (f"open_clip:{folder}", ""), ("open_clip", folder)]
    assert len({build_clip(name, path=path).digest for name, path in names}) == 1


def test_a_file_of_a_known_model(folders, tmp_path):
    import open_clip

    config = json.loads((folders["clip"] / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "Small-CLIP.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    file = str(folders["clip"] / "open_clip_model.safetensors")
    by_name = build_clip(f"open_clip:Small-CLIP/{file}")
    by_path = build_clip("open_clip:Small-CLIP", path=file)
    assert by_name.digest == by_path.digest == sha256_file(file)
    assert torch.equal(by_name.module.text_projection, load_file(file)["text_projection"])


def test_quick_gelu_follows_the_weights(folders, tmp_path, monkeypatch):
    import open_clip

    file = str(folders["clip"] / "open_clip_model.safetensors")
    config = json.loads((folders["clip"] / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "Gelu-CLIP.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    tags = {"plain": {"file": file}, "quick": {"file": file, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Gelu-CLIP", tags)
    built = {tag: build_clip(f"open_clip:Gelu-CLIP/{tag}") for tag in tags}
    assert [built[tag].activation for tag in tags] == ["gelu", "quickgelu"]
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(*(model.encode_image(image) for model in built.values()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-61/laion2b_s34b_b88k", 'unknown open_clip model "ViT-B-61" .nearest: ViT-B-16'),
        ("open_clip:ViT-B-16", "names no weights; write open_clip:ViT-B-16/TAG, available: openai, "),
        ("open_clip:ViT-B-16/laion2b_s34b", "nearest: laion2b_s34b_b88k"),
        ("open_clip:ViT-B-16//nowhere/w.pt", '"/nowhere/w.pt" for open_clip:ViT-B-16 are not there'),
        ("open_clip:hf-hub:nobody/nothing", 'open_clip cannot load "hf-hub:nobody/nothing"'),
    ],
)
def test_what_cannot_be_had_is_named(name, message):
    with pytest.raises(UserError, match=message):
        build_clip(name)


def test_a_damaged_folder_is_named(folders, tmp_path):
    for file in folders["clip"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f'open_clip cannot load "{tmp_path}"'):
        build_clip(f"open_clip:{tmp_path}")
    save_file({"ctx": torch.zeros(4)}, weights)
    with pytest.raises(UserError, match=f'open_clip cannot load "{tmp_path}"'):
        build_clip(f"open_clip:{tmp_path}")
    weights.unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        build_clip(f"open_clip:{tmp_path}")


def test_without_open_clip_the_error_says_what_to_install(tmp_path):
    (tmp_path / "open_clip.py").write_text("raise ModuleNotFoundError(\"No module named 'open_clip'\")\n")
    code = "from dassl.clip import build_clip; build_clip('open_clip:ViT-B-16/openai')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert "UserError: open_clip is not installed" in done.stderr
    assert "pip install open_clip_torch" in done.stderr
