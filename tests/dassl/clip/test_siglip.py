"""SigLIP and SigLIP 2: their tokenisers, where a prompt stands in them, pixels, and runs through train.py."""

import json
import shlex

import pytest
import torch
from torch.nn import functional as F

import train
from dassl.clip import build_clip, check_input
from dassl.config import get_cfg_default
from dassl.utils import UserError
from mergetune.models.prompts import PromptLearner, word_context
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401  a fixture

KINDS = ["siglip", "siglip2"]
NAMES = ["great_white shark", "Abyssinian", "St. Bernard"]


@pytest.fixture(scope="module", params=KINDS)
def clip(request, open_clip_folder):  # noqa: F811
    return build_clip(f"open_clip:{open_clip_folder(request.param)}").freeze()


def features(clip, learner):
    return clip.encode_text_from_embeddings(learner(), learner.tokens)


def test_texts_are_lower_case_and_without_punctuation(clip):
    """As SigLIP was trained: "canonicalize" in its configuration, which the tokeniser's own files do not say."""
    tokens = clip.tokenize(["A Photo of a CAT.", "a photo_of a cat", "dog"])
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
    assert clip.start_tokens == 0 and clip.token_counts(["a photo of a cat", ""]) == [5, 0]


def test_what_ends_and_pads_a_text(clip):
    tokens = clip.tokenize(["a a a"])[0].tolist()
    end, padding = (1, 1) if clip.tokenizer.tokenizer.eos_token == "</s>" else (1, 0)  # T5's files pad with the end
    assert tokens[3:] == [end] + [padding] * (clip.context_length - 4)
    assert tokens[1] == tokens[2] != tokens[0]  # without the space before it, a first word is another token


def test_the_context_length_is_kept_and_its_last_position_is_pooled(clip):
    tokens = clip.tokenize(["a cat", "a dog"])
    assert tokens.shape == (2, clip.context_length) == clip.shorten(tokens).shape
    embeddings = clip.embed(tokens).requires_grad_()
    clip.encode_text_from_embeddings(embeddings, tokens).sum().backward()
    assert embeddings.grad[:, -1].any()  # padding is read, so texts keep their length


@pytest.mark.parametrize("words", ["a photo of a", "this is a"])
def test_a_prompt_of_words_is_the_text_itself(clip, words):
    learner = PromptLearner(clip, NAMES, words=words)
    assert learner.ctx.shape == (len(words.split()), clip.width)
    torch.testing.assert_close(learner.ctx.detach(), word_context(clip, words), rtol=0, atol=0)
    texts = [f"{words} {name.replace('_', ' ')}." for name in NAMES]
    assert torch.equal(features(clip, learner), clip.encode_text(clip.tokenize(texts)))


def test_the_context_starts_at_the_first_position_and_the_class_follows(clip):
    learner = PromptLearner(clip, NAMES, n_ctx=3)
    with torch.no_grad():
        learner.ctx.fill_(7.0)
    prompts = learner()
    assert (prompts[:, :3] == 7).all() and not (prompts[:, 3:] == 7).all(dim=-1).any()
    whole = clip.embed(clip.tokenize([f"a a a {name.replace('_', ' ')}" for name in NAMES]))
    assert torch.equal(prompts[:, 3:], whole[:, 3:])


@pytest.mark.parametrize("position", ["front", "middle"])
def test_no_token_of_a_class_is_lost_at_other_positions(clip, position):
    """A name is counted behind other words: at the start of a text, Gemma's tokeniser splits it otherwise."""
    learner = PromptLearner(clip, NAMES, words="a photo of a", position=position)
    names = [f"a a a a {name.replace('_', ' ')}" for name in NAMES]
    for prompt, count, whole in zip(learner(), clip.token_counts(names), clip.embed(clip.tokenize(names)), strict=True):
        start = {"front": 0, "middle": 2}[position]
        assert torch.equal(prompt[start : start + count - 4], whole[4:count])
        assert torch.equal(prompt[count:], whole[count:])


def test_gradients_reach_the_context_alone(clip):
    learner = PromptLearner(clip, NAMES, n_ctx=2)
    F.normalize(features(clip, learner), dim=-1)[:, :3].sum().backward()
    assert learner.ctx.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.module.parameters())


def test_the_bias_gives_probabilities_and_no_other_ranking(clip):
    image = F.normalize(torch.randn(3, clip.dim), dim=-1)
    text = F.normalize(clip.encode_text(clip.tokenize(["a cat", "a dog"])), dim=-1)
    cosines = clip.logit_scale * image @ text.t()
    assert clip.logit_bias < -9  # so most pairs are improbable, as in training
    assert torch.sigmoid(cosines + clip.logit_bias).max() < 0.5
    torch.testing.assert_close((cosines + clip.logit_bias).softmax(1), cosines.softmax(1), rtol=1e-5, atol=1e-6)


def config_of(file):
    args = ["--trainer", file.split("/")[0], "--config-file", f"configs/trainers/{file}.yaml"]
    return train.setup_cfg(train.build_parser().parse_intermixed_args(args)).clone()


@pytest.mark.parametrize(
    "file",
    ["CoOp/siglip2_b16_ep100_ctxv1", "CoOp_LMC/siglip2_b16_paper", "KgCoOp_LMC/siglip2_b16_ep100_ctxv1",
     "ZeroshotCLIP/siglip2_l16", "CoOp_LMC/siglip2_l16_ep100_ctxv1"],
)  # fmt: skip
def test_the_configs_say_how_its_images_are_prepared(file):
    """Against open_clip's own table of the published weights."""
    import open_clip

    cfg = config_of(file)
    model, tag = cfg.MODEL.BACKBONE.NAME.removeprefix("open_clip:").split("/")
    assert model in open_clip.list_models() and tag in open_clip.list_pretrained_tags_by_model(model)
    published = open_clip.pretrained.get_pretrained_cfg(model, tag)
    assert tuple(cfg.INPUT.PIXEL_MEAN) == tuple(published["mean"])
    assert tuple(cfg.INPUT.PIXEL_STD) == tuple(published["std"])
    assert published["interpolation"] == cfg.INPUT.INTERPOLATION
    assert published["resize_mode"] == cfg.INPUT.RESIZE
    assert set(cfg.INPUT.SIZE) == {open_clip.get_model_config(model)["vision_cfg"]["image_size"]}


def test_pixels_of_another_model_are_refused_or_pointed_out(clip, capsys):
    cfg = config_of("CoOp/siglip2_b16_ep100_ctxv1")
    cfg.defrost()
    with pytest.raises(UserError, match=r"INPUT.SIZE is \(224, 224\), but .* takes \(160, 160\)"):
        check_input(cfg, clip)
    other = get_cfg_default()
    with pytest.raises(UserError, match=r"add INPUT\.SIZE .*INPUT\.RESIZE") as caught:
        check_input(other, clip)
    other.merge_from_list(shlex.split(str(caught.value).partition("; add ")[2]))
    capsys.readouterr()
    check_input(other, clip)
    assert "other pixels" not in capsys.readouterr().out
    cfg.INPUT.SIZE = (160, 160)
    capsys.readouterr()
    check_input(cfg, clip)
    assert "other pixels" not in capsys.readouterr().out
    plain = config_of("CoOp/vit_b16_ep100_ctxv1")
    plain.defrost()
    plain.INPUT.SIZE = (160, 160)
    check_input(plain, clip)
    warning = capsys.readouterr().out
    assert "PIXEL_MEAN (0.4815" in warning and "RESIZE shortest (trained with squash)" in warning


@pytest.fixture(scope="module")
def run(pets_root, open_clip_folder, tmp_path_factory):  # noqa: F811
    """`run(trainer, config, name, *words)`: train.py on a small SigLIP 2 from a folder; returns results.json."""
    out = tmp_path_factory.mktemp("siglip_runs")

    def go(trainer, config, name, *words):
        train.main([
            *("--root", str(pets_root), "--seed", "1", "--trainer", trainer, "--output-dir", str(out / name)),
            *("--dataset-config-file", "configs/datasets/oxford_pets.yaml"),
            *("--config-file", f"configs/trainers/{config}.yaml", *map(str, words)),
            *("MODEL.BACKBONE.NAME", f"open_clip:{open_clip_folder('siglip2')}", "INPUT.SIZE", "(160,160)"),
            *("DATALOADER.NUM_WORKERS", "0", "FEATURES.DIR", str(out / "features"), "FEATURES.VIEWS", "1"),
            *("TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_EPOCH", "0"),
            *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base"),
        ])  # fmt: skip
        return json.loads((out / name / "results.json").read_text())

    go.out = out
    return go


def test_zero_shot_through_train_py(run):
    found = run("ZeroshotCLIP", "ZeroshotCLIP/siglip2_b16", "zs", "--eval-only")
    assert found["total"] == 12 and found["backbone"]["preprocess"]["resize"] == "squash"


@pytest.mark.parametrize(("stage1", "stage2"), [("CoOp", "CoOp_LMC"), ("KgCoOp", "KgCoOp_LMC")])
def test_prompts_and_their_continuation_through_train_py(run, stage1, stage2):
    first = run(stage1, f"{stage1}/siglip2_b16_ep100_ctxv1", stage1)
    context = torch.load(run.out / stage1 / "prompt_learner" / "model.pth.tar-1", weights_only=True)["state_dict"]
    assert list(context) == ["ctx"] and context["ctx"].shape == (4, 64)
    words = ("--eval-only", "--model-dir", run.out / stage1)
    again = run(stage1, f"{stage1}/siglip2_b16_ep100_ctxv1", f"{stage1}_test", *words)
    assert again["correct"] == first["correct"]
    config = f"{stage2}/siglip2_b16_ep100_ctxv1"
    second = run(stage2, config, stage2, "--resume-coop", run.out / stage1)
    assert second["total"] == 12 and second["backbone"]["digest"] == first["backbone"]["digest"]
