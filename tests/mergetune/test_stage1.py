"""Checkpoints of others, in each command that reads any; and as stage 1: ours, the released code's, misfits."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dassl.utils import UserError
from mergetune import import_checkpoint
from mergetune.merge_sources import read_source
from mergetune.predict import Predictor
from tests.fixtures import coop_runs
from tests.fixtures import foreign_checkpoints as theirs
from tests.fixtures.coop_runs import built, context, results

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
    refuse(run, tmp_path / "theirs", r"size mismatch for ctx.*\[16, 128\].*\[4, 128\]")


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
    refuse(run, tmp_path / "nowhere", "No stage-1 checkpoint in .*nowhere.*found no model file")
    path = tmp_path / "cocoop" / "prompt_learner" / "model.pth.tar-1"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"text_adapter.5.down.0.weight": torch.zeros(8, 128)}}, path)
    refuse(run, tmp_path / "cocoop", "lacks ctx; it has besides text_adapter")


def test_the_zero_shot_end_needs_words(run):
    stage1 = run("CoOp", "random", TRAINER__COOP__CTX_INIT=False)
    keys = {"TRAINER__COOP__CTX_INIT": False}
    refuse(run, stage1, "CTX_INIT is False", TRAINER__LMC__TAU=0.5, **keys)
    run("CoOp_LMC", "fine", "--resume-coop", stage1, epochs=1, **keys)  # features with TAU 1 needs none


def loaded(trainer, path):
    trainer.load_model(str(path))
    return trainer.model.ctx.detach(), trainer._loaded[1]


def imported(path, out):
    import_checkpoint.main([str(path), "--out", str(out)])
    return context(out), int(next((out / "prompt_learner").glob("model.pth.tar-*")).suffix.partition("-")[2])


# what reads a checkpoint: (runs, path, a folder to write) -> the context, and the epochs done where it says so
READERS = {
    "--resume-coop": lambda run, path, out: (built(run, "CoOp_LMC", "--resume-coop", path).w2["ctx"], 7),
    "--model-dir": lambda run, path, out: loaded(built(run, "CoOp"), path),
    "import": lambda run, path, out: imported(path, out),
    "merge": lambda run, path, out: (read_source(path).state["ctx"], read_source(path).epoch),
    "predict": lambda run, path, out: (Predictor(path).trainer.model.ctx.detach(), Predictor(path).trainer._loaded[1]),
}
every_reader = pytest.mark.parametrize("reader", READERS)
FORMS = {  # what a file may hold of a state dict
    "wrapped": lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}, "epoch": 7},
    "bare": lambda state: {**state, "epoch": torch.tensor(7), "args": argparse.Namespace(lr=1), "best": np.float64(1)},
    "named": lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}, "epoch": np.int64(7)},
}


@pytest.fixture
def theirs_at(stage1, tmp_path):
    """`theirs_at(content)`: a run folder with that content in the place of its checkpoints."""

    def go(content, name="run"):
        folder = shutil.copytree(stage1, tmp_path / name) / "prompt_learner"
        for path in folder.iterdir():
            path.unlink()
        torch.save(content, folder / "model.pth.tar-7")
        left = {name: value for name, value in results(folder.parent).items() if name != "weights"}
        (folder.parent / "results.json").write_text(json.dumps(left))  # which says whose files they are
        return folder.parent

    return go


@every_reader
@pytest.mark.parametrize("form", FORMS)
def test_a_file_a_models_folder_and_a_run_are_read_alike(run, theirs_at, tmp_path, reader, form):
    ctx = torch.randn(4, 128)
    folder = theirs_at(FORMS[form]({"ctx": ctx}))
    for i, place in enumerate(("", "prompt_learner", "prompt_learner/model.pth.tar-7")):
        found, epoch = READERS[reader](run, folder / place, tmp_path / f"out{i}")
        assert torch.equal(found, ctx) and epoch == 7


@every_reader
def test_kgcoops_unused_net_is_left_out_and_other_methods_are_named(run, theirs_at, tmp_path, reader):
    sizes = theirs.Sizes(C=3, W=128, D=128)

    def trained(make):
        return {key: value for key, value in make(sizes).items() if not key.startswith("token_suffix")}

    state = trained(theirs.kgcoop_with_unused_net)
    found, _ = READERS[reader](run, theirs_at({"state_dict": state, "epoch": 7}), tmp_path / "out")
    assert torch.equal(found, state["ctx"])
    for i, (make, name) in enumerate(theirs.REFUSED.items()):
        folder = theirs_at({"state_dict": trained(make), "epoch": 7}, f"run{i}")
        with pytest.raises(UserError, match=f"tar-7: a file of {name}.* is recognised"):
            READERS[reader](run, folder, tmp_path / f"out{i}")


@every_reader
def test_safetensors_are_read_by_their_name(run, theirs_at, tmp_path, reader):
    ctx = torch.randn(4, 128)
    file = theirs_at({}) / "prompt_learner" / "best.safetensors"
    save_file({"ctx": ctx}, file)
    assert torch.equal(READERS[reader](run, file, tmp_path / "out")[0], ctx)
    with pytest.raises(UserError, match="best.pth.* is a safetensors file under another name"):
        READERS[reader](run, file.rename(file.with_suffix(".pth")), tmp_path / "again")


def test_one_file_has_no_epoch_to_choose(run, stage1):
    with pytest.raises(UserError, match="is one file of weights: there is no epoch 1 to choose"):
        built(run, "CoOp").load_model(str(next(stage1.glob("prompt_learner/model*"))), epoch=1)
