"""PromptSRC: its loss, its sum over epochs, resuming, and other people's weights; the pets and the tiny CLIP."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import train
from dassl.engine import build_trainer
from dassl.utils import UserError, set_random_seed
from mergetune.models.templates import IMAGENET
from mergetune.trainers.promptsrc import N_TEMPLATES, PromptSRC, WeightedSum
from tests.fixtures.any_trainer import line


@pytest.fixture
def words(pets_root, tmp_path):
    """`words(name, ...)`: the command line of a run into tmp_path/name."""

    def give(name, *flags, **keys):
        keys = {"FEATURES__DIR": tmp_path / "features", "FEATURES__VIEWS": 2, "OPTIM__MAX_EPOCH": 3} | keys
        return line("PromptSRC", pets_root, tmp_path / name, *flags, **keys)

    return give


def state(folder, epoch):
    path = folder / "VLPromptLearner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


def built(argv):
    set_random_seed(1)
    return build_trainer(train.setup_cfg(train.build_parser().parse_intermixed_args(argv)))


def test_the_loss_is_the_recipes(words):
    trainer = built(words("built"))
    trainer.before_train()
    clip, model = trainer.clip, trainer.model
    batch = next(iter(trainer.train_loader_x))
    losses = trainer.losses(batch)
    rows = []
    for template in IMAGENET[:N_TEMPLATES]:
        rows.append(clip.encode_text(clip.tokenize([template.format(name) for name in trainer.classnames])))
    t0 = F.normalize(torch.stack(rows).mean(0), dim=-1)
    x0 = F.normalize(clip.encode_image(batch["img"]), dim=-1)
    t, x = F.normalize(model.encode_classes(), dim=-1), F.normalize(model.encode_image(batch["img"]), dim=-1)
    logits, zero_shot = clip.logit_scale * x @ t.T, clip.logit_scale * x0 @ t0.T
    p = zero_shot.softmax(-1)
    expected = {
        "ce": F.cross_entropy(logits, batch["label"]),
        "text": 25 * (t - t0).abs().mean(),
        "image": 10 * (x - x0).abs().mean(),
        "kl": (p * (p.log() - logits.log_softmax(-1))).sum() / logits.numel(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    sum(losses.values()).backward()
    assert all(value.grad.abs().max() > 0 for value in model.parameters())
    trainer.close_writer()


def test_a_step_encodes_its_images_once(words):
    """CLIP's own features of the same views come from the bank."""
    trainer = built(words("built"))
    trainer.before_train()
    batch, passes = next(iter(trainer.train_loader_x)), []
    handle = trainer.clip.module.visual.register_forward_hook(lambda *_: passes.append(1))
    trainer.losses(batch)
    handle.remove()
    trainer.close_writer()
    assert len(passes) == 1


def test_the_weights_of_the_sum_are_a_normal_density():
    """Over epochs 1, 2, 3 with mean 2 and deviation 1: e^-1/2, 1, e^-1/2, over their sum."""
    side = math.exp(-0.5)
    total = 1 + 2 * side
    assert WeightedSum(2, 1, 3).weights == pytest.approx([side / total, 1 / total, side / total])
    assert sum(WeightedSum(15, 1, 20).weights) == pytest.approx(1)
    assert WeightedSum(15, 1, 3).weights[-1] > 0.99  # a mean beyond the last epoch: the last counts


def test_the_model_is_the_sum_over_epochs(words, tmp_path):
    """With a narrow density the sum is the model of that epoch, which the run has also kept."""
    keys = {"TRAIN__CHECKPOINT_FREQ": 1, "TRAINER__PROMPTSRC__GPA_STD": 0.01}
    train.main(words("second", TRAINER__PROMPTSRC__GPA_MEAN=2, **keys))
    second, third = state(tmp_path / "second", 2), state(tmp_path / "second", 3)
    assert all(torch.equal(second[name], third[name]) for name in second)
    train.main(words("mixed", TRAINER__PROMPTSRC__GPA_MEAN=1.5, **keys))
    first, second, mixed = (state(tmp_path / "mixed", epoch) for epoch in (1, 2, 3))
    for name in first:
        torch.testing.assert_close(mixed[name], (first[name] + second[name]) / 2)


def test_a_resumed_run_keeps_the_sum(words, tmp_path, monkeypatch):
    keys = {"TRAINER__PROMPTSRC__GPA_MEAN": 2}
    train.main(words("whole", **keys))
    go_on = PromptSRC.run_epoch

    def stop(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        go_on(self)

    monkeypatch.setattr(PromptSRC, "run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(words("halves", **keys))
    monkeypatch.setattr(PromptSRC, "run_epoch", go_on)
    train.main(words("halves", **keys))
    whole, halves = state(tmp_path / "whole", 3), state(tmp_path / "halves", 3)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_weights_among_clips_own_are_evaluated(words, tmp_path):
    """A file of IVLP or PromptSRC holds the whole CLIP, the prompts among it, and the prompts' embeddings."""
    train.main(words("ours"))
    own = state(tmp_path / "ours", 3)
    foreign = own | {
        "prompt_learner.token_prefix": torch.zeros(3, 1, 128),
        "prompt_learner.token_suffix": torch.zeros(3, 72, 128),
        "prompt_learner.ZS_image_encoder.conv1.weight": torch.zeros(2),
        "image_encoder.conv1.weight": torch.zeros(2),
        "text_encoder.transformer.resblocks.0.ln_1.weight": torch.zeros(2),
        "logit_scale": torch.zeros(()),
    }
    place = tmp_path / "theirs" / "VLPromptLearner"
    place.mkdir(parents=True)
    torch.save({"state_dict": foreign, "epoch": 20}, place / "model.pth.tar-20")
    found = train.main(words("test", "--eval-only", "--model-dir", tmp_path / "theirs"))
    ours = json.loads((tmp_path / "ours" / "results.json").read_text())
    assert found["correct"] == ours["correct"]
    del foreign["text_encoder.transformer.resblocks.1.VPT_shallow"]
    torch.save({"state_dict": foreign, "epoch": 20}, place / "model.pth.tar-20")
    with pytest.raises(UserError, match=r"lacks text_encoder\.transformer\.resblocks\.1\.VPT_shallow"):
        train.main(words("lacking", "--eval-only", "--model-dir", tmp_path / "theirs"))


def test_too_deep_is_refused_before_training(words):
    with pytest.raises(UserError, match="up to 9, but the text tower of tiny has 4"):
        built(words("deep", TRAINER__PROMPTSRC__PROMPT_DEPTH_TEXT=9))
