"""Robust fine-tuning: the linear probe, end-to-end fine-tuning, and MERGETUNE on both."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl.clip import cached_clip, cosine_logits, text_classifier
from dassl.utils import UserError, load_checkpoint
from mergetune.lmc import interpolate, line_loss, line_of_logits, line_points
from mergetune.models.heads import HeadTrainer, LinearHead, linear_line_loss, rows_for
from mergetune.models.templates import IMAGENET, SELECT, templates
from mergetune.stage2 import MergeTune, trainable
from tests.fixtures.open_clip_models import open_clip_folder  # noqa: F401
from tests.fixtures.toy_objects import COUNTS, runs  # noqa: F401

PAIRS = [("LinearProbe", "lp", "head"), ("FineTune", "ft", "finetuned")]


def weights(folder, model):
    """The state dict of a run's last epoch."""
    return load_checkpoint(str(max((folder / model).glob("model.pth.tar-*"))))["state_dict"]


def test_batch(trainer):
    """Images, or features, and labels of the first test batch."""
    trainer.use_feature_bank_for("test")
    trainer.set_model_mode("eval")
    return trainer.parse_batch_test(next(iter(trainer.test_loader)))


test_batch.__test__ = False


@pytest.mark.parametrize("trainer", ["LinearProbe", "FineTune"])
@pytest.mark.parametrize("kind", ["dataset", "imagenet"])
def test_untrained_it_is_zero_shot_clip(runs, trainer, kind):  # noqa: F811
    built = runs.built(trainer, "new", "TRAINER.HEAD.TEMPLATES", kind)
    prompts = IMAGENET if kind == "imagenet" else [built.template]
    images, _ = test_batch(built)
    with torch.no_grad():
        logits = built.model_inference(images)
        vectors = text_classifier(built.clip, built.classnames, prompts)
        expected = cosine_logits(built.image_features(images), vectors, built.clip.logit_scale)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)  # of logits up to 100
    assert torch.equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(("trainer", "name", "model"), PAIRS)
def test_what_trains_is_what_is_stored(runs, trainer, name, model):  # noqa: F811
    state, start = weights(runs.folder / name, model), runs.built(trainer, "new").zero_shot_weights()
    assert set(start) <= set(state)
    moved = [key for key, value in start.items() if not torch.equal(state[key], value)]
    assert len(moved) > 0.9 * len(start)  # a norm's bias may stay where it was
    assert not any(key.startswith(("transformer", "token_embedding", "logit_scale")) for key in state)
    tested = runs.run(trainer, f"{name}-eval", "--eval-only", "--model-dir", runs.folder / name)
    trained = json.loads((runs.folder / name / "results.json").read_text())
    assert tested["correct"] == trained["correct"] and tested["total"] == 20 * COUNTS[2]
    assert tested["data_seen"] == trained["data_seen"] == "all images of all classes"


def test_the_probe_needs_one_view_of_each_image_and_pixels_train_the_same(runs):  # noqa: F811
    bank = runs.built("LinearProbe", "new")
    bank.use_feature_bank("train_loader_x", is_train=True)
    assert len(bank.train_loader_x.dataset.bank) == 1
    assert "RandomResizedCrop" not in str(bank.dm.train_loader_x.dataset.transform)
    runs.run("LinearProbe", "pixels", "FEATURES.VIEWS", "0")
    pixels, stored = (weights(runs.folder / name, "head")["weight"] for name in ("pixels", "lp"))
    torch.testing.assert_close(pixels, stored, rtol=0, atol=1e-4)


def test_fine_tuning_leaves_the_shared_clip_alone(runs):  # noqa: F811
    shared = cached_clip("tiny")
    before = {name: value.clone() for name, value in shared.module.state_dict().items()}
    trainer = runs.built("FineTune", "new", "TEST.NO_TEST", "True", "OPTIM.MAX_EPOCH", "1")
    trainer.train()
    assert trainer.clip.module is not shared.module and trainer.sched.last_epoch == 3  # 60 images, batches of 20
    assert not torch.equal(trainer.clip.module.visual.proj, before["visual.proj"])
    assert all(torch.equal(value, before[name]) for name, value in shared.module.state_dict().items())
    assert not any(value.requires_grad for value in shared.module.parameters())


@pytest.mark.parametrize(("trainer", "stage1"), [("FineTune", ""), ("FineTune_LMC", "ft")])
def test_an_interrupted_run_goes_on_to_the_same_bits(runs, trainer, stage1):  # noqa: F811
    words = ["--resume-coop", runs.folder / stage1, "TRAINER.LMC.NUM_SAMPLES", "1"] if stage1 else []
    runs.run(trainer, f"whole-{trainer}", *words)
    halves = runs.built(trainer, f"halves-{trainer}", *words)
    step = halves.forward_backward

    def stopping(*batch):
        if (halves.epoch, halves.batch_idx) == (1, 1):
            raise KeyboardInterrupt
        return step(*batch)

    halves.forward_backward = stopping
    with pytest.raises(KeyboardInterrupt):
        halves.train()
    halves.close_writer()
    runs.run(trainer, f"halves-{trainer}", *words)
    first, second = (weights(runs.folder / f"{part}-{trainer}", "finetuned") for part in ("whole", "halves"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_batch_norm_keeps_its_statistics(runs):  # noqa: F811
    trainer = runs.built("FineTune", "new")
    trainer.model.extra = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
    trainer.set_model_mode("train")
    assert not trainer.model.extra[0].training
    assert trainer.model.extra[1].training and trainer.model.visual.training


@pytest.mark.parametrize("grid", ["released", "uniform"])
def test_closed_form_equals_the_loop(grid):
    g = torch.Generator().manual_seed(0)
    image, labels = F.normalize(torch.randn(7, 16, generator=g), dim=-1), torch.randint(0, 5, (7,), generator=g)
    start, end = (20 * torch.randn(5, 16, generator=g) for _ in range(2))
    end.requires_grad_(True)
    points = line_points(5, grid)
    closed = linear_line_loss(image, labels, start, end, torch.tensor(points))
    loop = line_loss(lambda head: F.cross_entropy(image @ head.t(), labels), start, end, points)
    torch.testing.assert_close(closed, loop)
    torch.testing.assert_close(*(torch.autograd.grad(loss, end)[0] for loss in (closed, loop)), rtol=1e-4, atol=1e-6)
    logits = line_of_logits(image @ start.t(), image @ end.t(), torch.tensor(points))
    torch.testing.assert_close(logits[3], LinearHead(interpolate(start, end, points[3]))(image), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("trainer", "name", "model"), PAIRS)
def test_the_path_in_weights_equals_the_plain_loop(runs, trainer, name, model):  # noqa: F811
    """Value and gradient, against the pass a point that `MergeTune` makes of any trainer."""
    built = runs.built(f"{trainer}_LMC", "new", "--resume-coop", runs.folder / name)
    built.use_feature_bank("train_loader_x", is_train=True)
    images, labels = built.parse_batch_train(next(iter(built.train_loader_x)))
    params = list(trainable(built.model).values())
    ours, plain = built.weight_path(images, labels), MergeTune.weight_path(built, images, labels)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(ours, params), torch.autograd.grad(plain, params), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("trainer", "name", "model"), PAIRS)
def test_at_its_ends_stage_2_is_one_of_its_parents(runs, trainer, name, model):  # noqa: F811
    words = ["--resume-coop", runs.folder / name, "TRAINER.LMC.LAMBDA", "1.0", "TRAINER.LMC.TAU"]
    at_clip, at_stage1 = (runs.built(f"{trainer}_LMC", "new", *words, tau) for tau in ("0.0", "1.0"))
    for built in (at_clip, at_stage1):
        built.use_feature_bank("train_loader_x", is_train=True)
        built.set_model_mode("train")
    assert at_clip.anchor(at_clip.text_features()).item() == 0
    batch = next(iter(at_stage1.train_loader_x))
    losses = at_stage1.losses(batch)
    torch.testing.assert_close(losses["lmc"], 0.5 * losses["ce"], rtol=1e-4, atol=1e-6)  # w = w2, BETA 0.5
    moved = sum((at_stage1.w1[key] - at_stage1.w2[key]).square().sum() for key in at_stage1.w1)
    torch.testing.assert_close(losses["anchor"], moved, rtol=1e-4, atol=1e-6)
    stage1, ours = weights(runs.folder / name, model), at_stage1.model.state_dict()
    for key, value in stage1.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-6)  # w1 + 1 (w2 - w1), rounded


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_path_of_heads_alone(runs, one_sided):  # noqa: F811
    path_to = "zero_shot" if one_sided else "stage1"
    words = ["TRAINER.LMC.SPACE", "features", "TRAINER.LMC.PATH_TO", path_to, "--resume-coop", runs.folder / "ft"]
    built = runs.built("FineTune_LMC", "new", *words)
    images, labels = test_batch(built)
    with torch.no_grad():
        image, head = built.image_features(images), built.text_features()
        start, end = (head, built.zero_shot_head()) if one_sided else (built.w2["head.weight"], head)
        plain = [F.cross_entropy(image @ interpolate(start, end, t).t(), labels) for t in built.line]
        torch.testing.assert_close(built.feature_path(image, head, labels), torch.stack(plain).mean())
        logits = built.path_logits("features", built.f1, built.f2, torch.tensor([0.0, 1.0]), images)
        torch.testing.assert_close(logits[0], image @ built.f1.t(), rtol=1e-5, atol=1e-4)


def test_a_head_scores_some_of_its_classes_by_name(runs):  # noqa: F811
    whole = runs.built("LinearProbe", "new")
    part = runs.built("LinearProbe", "part", "DATASET.SUBSAMPLE_CLASSES", "new")
    for trainer in (whole, part):
        trainer.load_model(str(runs.folder / "lp"))
    assert torch.equal(part.model.weight, whole.model.weight[10:])
    assert rows_for(["a", "b", "a", "c"], ["c", "a"], "it") == [3, 0]
    with pytest.raises(UserError, match=r"of 2 classes \(a .. b\) and knows no others: 1 of this run's 2.*\(c\)"):
        rows_for(["a", "b"], ["c", "b"], "it")


def test_bad_values_are_refused(runs):  # noqa: F811
    with pytest.raises(UserError, match="TRAINER.HEAD.TEMPLATES.*select"):
        runs.built("LinearProbe", "bad", "TRAINER.HEAD.TEMPLATES", "selct")
    with pytest.raises(UserError, match="fp16 would train"):
        runs.built("FineTune", "bad", "TRAINER.HEAD.PREC", "fp16")
    with pytest.raises(UserError, match="does not fit|no stage-1|No stage-1"):
        runs.built("FineTune_LMC", "bad", "--resume-coop", runs.folder / "lp")
    with pytest.raises(UserError, match="trained on 20 classes|holds weight"):
        runs.built(
            "LinearProbe_LMC", "bad", "DATASET.SUBSAMPLE_CLASSES", "base", "--resume-coop", runs.folder / "lp"
        ).before_train()


def test_presets_keep_the_recipe_of_the_run_they_continue(runs):  # noqa: F811
    for trainer, name, _ in PAIRS:
        stage1 = runs.built(trainer, "new").cfg
        for preset in ("paper", "continued"):
            stage2 = runs.built(f"{trainer}_LMC", "new", "--resume-coop", runs.folder / name, config=preset).cfg
            assert stage2.OPTIM == stage1.OPTIM and stage2.PRESET.startswith(preset)
        assert stage2.TRAINER.LMC.LAMBDA == stage2.TRAINER.LMC.BETA == 0 and stage2.TRAINER.LMC.TAU == 1


def test_lists_of_templates():
    assert len(IMAGENET) == len(set(IMAGENET)) == 80 and set(SELECT) < set(IMAGENET) and len(SELECT) == 7
    assert all(prompt.count("{}") == 1 for prompt in IMAGENET)
    assert templates("dataset", "my {}.") == ("my {}.",)
    head = HeadTrainer.zero_shot_head(
        SimpleNamespace(clip=cached_clip("tiny"), classnames=["circle", "star"], prompts=SELECT)
    )
    scale = cached_clip("tiny").logit_scale
    torch.testing.assert_close(head.norm(dim=1), scale.expand(2))


@pytest.mark.parametrize("trainer", ["LinearProbe", "FineTune"])
def test_a_clip_whose_text_tower_takes_no_prompt_embeddings_serves_too(runs, open_clip_folder, trainer):  # noqa: F811
    """A Hugging Face text tower: no prompt can be learned on it, but a head needs its class vectors alone."""
    name = f"open_clip:{open_clip_folder('roberta')}"
    built = runs.built(trainer, "new", "MODEL.BACKBONE.NAME", name, "INPUT.SIZE", "(32,32)")
    images, labels = test_batch(built)
    with torch.no_grad():
        vectors = text_classifier(built.clip, built.classnames, [built.template])
        expected = cosine_logits(built.image_features(images), vectors, built.clip.logit_scale)
        torch.testing.assert_close(built.model_inference(images), expected, rtol=0, atol=1e-4)
    loss = built.cross_entropy(built.image_features(images), built.text_features(), labels)
    gradients = torch.autograd.grad(loss, list(trainable(built.model).values()))
    assert all(gradient is not None for gradient in gradients)
