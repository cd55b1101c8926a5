"""The stage-1 checkpoints that a stage 2 continues: ours, the released code's, and those that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dassl.utils import UserError
from tests.fixtures import coop_runs
from tests.fixtures.coop_runs import built, results

run, shared, stage1 = coop_runs.run, coop_runs.shared, coop_runs.stage1  # fixtures


def released_checkpoint(trainer, path, n_ctx=4, classes=None):
    """What the authors' code saves: the context with the prompts' fixed embeddings, a scheduler state."""
    fixed = trainer.model.fixed if classes is None else trainer.model.fixed[:classes]
    state = {
        "ctx": torch.randn(n_ctx, trainer.clip.width) * 0.02,
        "token_prefix": fixed[:, :1].clone(),
        "token_suffix": fixed[:, 1 + 4 :].clone(),
        "bias_vectors": torch.zeros(1, trainer.clip.width),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 100, "optimizer": None, "scheduler": {"last_epoch": 100}}, path)
    return state["ctx"]


@pytest.mark.parametrize("name", ["model.pth.tar-100", "model-100.pth.tar", "model-best.pth.tar"])
def test_checkpoints_of_the_released_code_are_stage_1(run, tmp_path, name):
    plain = built(run, "CoOp")
    ctx = released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / name)
    trainer = built(run, "CoOp_LMC", "--resume-coop", tmp_path / "theirs")
    torch.testing.assert_close(trainer.w2["ctx"], ctx)
    run("CoOp_LMC", "continued", "--resume-coop", tmp_path / "theirs", epochs=1)


def test_the_last_numbered_checkpoint_is_taken(run, tmp_path):
    plain = built(run, "CoOp")
    for name in ("model.pth.tar-9", "model-best.pth.tar", "model.pth.tar-50"):
        released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / name)
    last = released_checkpoint(plain, tmp_path / "theirs" / "prompt_learner" / "model-100.pth.tar")
    torch.testing.assert_close(built(run, "CoOp_LMC", "--resume-coop", tmp_path / "theirs").w2["ctx"], last)


def refuse(run, stage1, match, **keys):
    """Training is refused with both sides named, and nothing is saved."""
    with pytest.raises(UserError, match=match):
        run("CoOp_LMC", "refused", "--resume-coop", stage1, **keys)
    assert not list(Path(run.argv("CoOp_LMC", "refused")[7]).glob("prompt_mid_learner/*"))


def test_a_stage_1_of_another_length_is_refused(run, tmp_path):
    released_checkpoint(built(run, "CoOp"), tmp_path / "theirs" / "prompt_learner" / "model.pth.tar-5", n_ctx=16)
    refuse(run, tmp_path / "theirs", r"N_CTX 16 x width 128.*N_CTX 4 x width 128")


def test_a_stage_1_of_other_classes_is_refused(run, tmp_path):
    released_checkpoint(built(run, "CoOp"), tmp_path / "theirs" / "prompt_learner" / "model.pth.tar-5", classes=2)
    refuse(run, tmp_path / "theirs", r"trained on 2 classes, this run has 3")
    other = built(run, "CoOp", DATASET__SUBSAMPLE_CLASSES="new")
    released_checkpoint(other, tmp_path / "new" / "prompt_learner" / "model.pth.tar-5")
    refuse(run, tmp_path / "new", r"the names of 3 of 3 classes differ")
    ours = run("CoOp", "ours", DATASET__SUBSAMPLE_CLASSES="new")
    refuse(run, ours, r"3 classes \(boxer \.\. pug\).*3 \(abyssinian \.\. bengal\)")


def test_a_stage_1_of_another_backbone_is_refused(run, tmp_path, stage1):
    theirs = shutil.copytree(stage1, tmp_path / "theirs")
    facts = results(theirs)
    facts["backbone"] |= {"name": "ViT-B/16", "digest": "5" * 64}
    (theirs / "results.json").write_text(json.dumps(facts))
    refuse(run, theirs, r"trained on ViT-B/16 \(555555555555\), this run uses tiny")


def test_missing_and_foreign_stage_1_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="--resume-coop"):
        run("CoOp_LMC", "none")
    refuse(run, tmp_path / "nowhere", "No stage-1 checkpoint in .*nowhere.*no such folder")
    path = tmp_path / "cocoop" / "prompt_learner" / "model.pth.tar-1"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 128), "meta_net.linear1.weight": torch.zeros(8, 128)}}, path)
    refuse(run, tmp_path / "cocoop", "CoCoOp")
    torch.save({"state_dict": {"text_adapter.5.down.0.weight": torch.zeros(8, 128)}}, path)
    refuse(run, tmp_path / "cocoop", "missing ctx; surplus text_adapter")


def test_the_zero_shot_end_needs_words(run):
    stage1 = run("CoOp", "random", TRAINER__COOP__CTX_INIT=False)
    keys = {"TRAINER__COOP__CTX_INIT": False}
    refuse(run, stage1, "CTX_INIT is False", TRAINER__LMC__TAU=0.5, **keys)
    run("CoOp_LMC", "fine", "--resume-coop", stage1, epochs=1, **keys)  # features with TAU 1 needs none
