"""Models of open_clip whose text tower is a Hugging Face model: what runs on them, and what is refused and why."""

import json

import pytest
import torch
from torch.nn import functional as F

import train
from dassl.clip import build_clip
from dassl.utils import UserError, sha256_file
from mergetune.models.prompts import PromptLearner
from tests.fixtures.open_clip_models import (
    FOREIGN_TEXT,
    MODELS,
    open_clip_folder,  # noqa: F401  a fixture
)

TEXTS = ["a photo of a cat", "two dogs, on a long road"]
REASON = "its text tower is a Hugging Face model .*, which takes tokens, not embeddings"


@pytest.fixture(params=FOREIGN_TEXT)
def kind(request):
    return request.param


@pytest.fixture
def backbone(kind, open_clip_folder):  # noqa: F811
    return build_clip(f"open_clip:{open_clip_folder(kind)}")


def test_facts_and_features_are_open_clips(kind, backbone, open_clip_folder):  # noqa: F811
    assert backbone.digest == sha256_file(open_clip_folder(kind) / "open_clip_model.safetensors")
    assert (backbone.dim, backbone.context_length, backbone.image_size) == (32, 64, 32)
    assert backbone.start_tokens == (1 if kind == "roberta" else 0) and not backbone.causal
    tokens = backbone.tokenize(TEXTS)
    assert tokens.shape == (2, 64) and backbone.token_counts(["a cat", "a photo of a cat"]) == [2, 5]
    assert torch.equal(backbone.encode_text(tokens), backbone.module.encode_text(tokens))
    images = torch.randn(2, 3, 32, 32)
    image, text = backbone.encode_image(images), backbone.encode_text(tokens)
    logits = backbone.logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
    torch.testing.assert_close(logits, backbone.module.get_logits(images, tokens)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match='a a" is too long for the 64 tokens'):
        backbone.tokenize([" ".join("a" * 64)])


def test_the_text_model_is_built_from_the_folder_not_from_its_name(kind, open_clip_folder):  # noqa: F811
    """The configuration names roberta-base, which is not on this machine; the folder's config.json stands for it."""
    config = json.loads((open_clip_folder(kind) / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == MODELS[kind]["text_cfg"]["hf_model_name"]
    (open_clip_folder(kind) / "config.json").rename(open_clip_folder(kind) / "kept.json")
    try:
        with pytest.raises(UserError, match=f"cache: {config['model_cfg']['text_cfg']['hf_model_name']}/config.json"):
            build_clip(f"open_clip:{open_clip_folder(kind)}")
    finally:
        (open_clip_folder(kind) / "kept.json").rename(open_clip_folder(kind) / "config.json")


def test_prompts_are_refused_with_the_reason(backbone):
    tokens = backbone.tokenize(TEXTS)
    with pytest.raises(UserError, match=f"learned prompts cannot run on open_clip:.*: {REASON}. Zero-shot, linear"):
        PromptLearner(backbone, ["cat", "dog"])
    for ask in (
        lambda: backbone.embed(tokens),
        lambda: backbone.width,
        lambda: backbone.encode_text_from_embeddings(torch.zeros(2, 64, 48), tokens),
    ):
        with pytest.raises(UserError, match=REASON):
            ask()
    assert backbone.text_blocks == [] and len(backbone.image_blocks) == 2  # so adapters and deep prompts are refused


def test_both_towers_can_be_fine_tuned(backbone):
    backbone.module.requires_grad_(True)
    images, tokens = torch.randn(2, 3, 32, 32), backbone.tokenize(TEXTS)
    image, text = (F.normalize(x, dim=-1) for x in (backbone.encode_image(images), backbone.encode_text(tokens)))
    F.cross_entropy(backbone.logit_scale * image @ text.t(), torch.arange(2)).backward()
    assert all(any(p.grad.any() for p in tower.parameters() if p.grad is not None)
               for tower in (backbone.module.visual, backbone.module.text))  # fmt: skip


def test_half_precision(kind, backbone, open_clip_folder):  # noqa: F811
    half = build_clip(f"open_clip:{open_clip_folder(kind)}", precision="fp16")
    assert half.dtype == torch.float16 and half.digest == backbone.digest
    features = half.encode_text(half.tokenize(TEXTS))
    assert features.dtype == torch.float16
    assert F.cosine_similarity(features.float(), backbone.encode_text(backbone.tokenize(TEXTS))).min() > 0.999


@pytest.fixture
def run(pets_root, open_clip_folder, tmp_path):  # noqa: F811
    def go(trainer, config, *words):
        train.main([
            *("--root", str(pets_root), "--seed", "1", "--trainer", trainer, "--output-dir", str(tmp_path / trainer)),
            *("--dataset-config-file", "configs/datasets/oxford_pets.yaml"),
            *("--config-file", f"configs/trainers/{config}.yaml", *map(str, words)),
            *("MODEL.BACKBONE.NAME", f"open_clip:{open_clip_folder('roberta')}", "INPUT.SIZE", "(32,32)"),
            *("DATALOADER.NUM_WORKERS", "0", "FEATURES.DIR", str(tmp_path / "features"), "OPTIM.MAX_EPOCH", "1"),
            *("TRAINER.COOP.PREC", "fp32", "TRAINER.HEAD.PREC", "fp32", "OPTIM.WARMUP_EPOCH", "0"),
            *("DATASET.NUM_SHOTS", "4"),
        ])  # fmt: skip
        return json.loads((tmp_path / trainer / "results.json").read_text())

    go.out = tmp_path
    return go


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "LinearProbe", "FineTune"])
def test_what_needs_no_embeddings_runs_through_train_py(run, trainer):
    found = run(trainer, f"{trainer}/vit_b16", *(["--eval-only"] if trainer == "ZeroshotCLIP" else []))
    assert found["total"] == 24 and found["backbone"]["name"].startswith("open_clip:")


@pytest.mark.parametrize("trainer", ["CoOp", "KgCoOp"])
def test_learned_prompts_stop_before_training(run, trainer):
    with pytest.raises(UserError, match=REASON):
        run(trainer, f"{trainer}/vit_b16_ep100_ctxv1")
    assert not any(run.out.rglob("*.pth.tar*")) and not (run.out / "features").exists()
