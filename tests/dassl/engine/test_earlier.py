"""Going on from another run's folder: whose schedule counts, what must be the same, and what is left to do."""

import contextlib
import os
import shutil

import pytest
import torch

from dassl.config import merge_pairs
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.launch import run
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import go_on
from dassl.utils import UserError, load_checkpoint, set_random_seed
from tests.dassl.engine.test_resume import EACH, FIRST, checkpoints, same, stop_at
from tests.fixtures import dassl_style_world
from tests.fixtures.dassl_style_world import style_config

root = dassl_style_world.root  # a fixture


def build(root, output, *pairs, name="ShortLosses", epochs=4):
    set_random_seed(1)
    cfg = style_config(root, output, name, OPTIM__MAX_EPOCH=epochs)
    merge_pairs(cfg, list(map(str, pairs)))
    return build_trainer(cfg)


def rates(trainer):
    """Train -> {epoch: learning rate}."""
    found = {}
    trainer.before_epoch = lambda: found.setdefault(trainer.epoch, trainer.get_current_lr())
    trainer.train()
    return found


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """The folder of a finished run of 4 epochs; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(style_config(root, folder, "ShortLosses", OPTIM__MAX_EPOCH=4))
    return folder


SCHEDULES = {
    "cosine": [],
    "linear warm-up": ["OPTIM.WARMUP_TYPE", "linear", "OPTIM.WARMUP_EPOCH", 3],
    "no recount": ["OPTIM.WARMUP_RECOUNT", False],
    "single_step": ["OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", (3,)],
    "multi_step": ["OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", (3, 5)],
    "constant": ["OPTIM.LR_SCHEDULER", "constant", "OPTIM.WARMUP_EPOCH", 0],
}


@pytest.mark.parametrize("left", ["finished", "interrupted", "Dassl's files"])
@pytest.mark.parametrize("pairs", SCHEDULES.values(), ids=SCHEDULES)
def test_the_schedule_is_the_new_configs_at_the_epochs_that_are_done(root, finished, tmp_path, pairs, left):
    theirs = tmp_path / "theirs"
    if left == "interrupted":
        stop_at(build(root, theirs, *EACH), 3)
    else:
        shutil.copytree(finished, theirs)
    if left == "Dassl's files":
        (theirs / "config.yaml").unlink()
    done = 3 if left == "interrupted" else 4
    pairs = [*pairs, "OPTIM.LR", 0.05]
    whole = rates(build(root, tmp_path / "whole", *pairs, epochs=8))
    assert len(set(whole.values())) > 1 or "constant" in pairs
    resumed = build(root, tmp_path / "out", *pairs, "RESUME", theirs, epochs=8)
    assert rates(resumed) == {epoch: rate for epoch, rate in whole.items() if epoch >= done}
    assert resumed.optim.param_groups[0]["initial_lr"] == 0.05


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_moments_stay_with_the_optimizer_that_made_them(root, tmp_path, finished, name, caplog):
    resumed = build(root, tmp_path, "OPTIM.NAME", name, "OPTIM.MOMENTUM", 0.5, "RESUME", finished, epochs=6)
    resumed.before_train()
    resumed.close_writer()
    theirs = load_checkpoint(finished / "head" / "model.pth.tar-4")["optimizer"]["state"]
    if name == "sgd":
        assert same(resumed.optim.state_dict()["state"], theirs)
    else:
        assert not resumed.optim.state and "starts anew: the earlier run had another optimizer" in caplog.text
    assert resumed.optim.param_groups[0].get("momentum", 0.5) == 0.5


def test_a_schedule_by_steps_is_at_the_steps_of_the_epochs_done(root):
    def made(total, lr):
        cfg = style_config(root, root, "ShortLosses", OPTIM__LR_SCHEDULER="cosine_steps", OPTIM__WARMUP_EPOCH=0)
        merge_pairs(cfg, ["OPTIM.WARMUP_STEPS", "4", "OPTIM.LR", str(lr), "OPTIM.MAX_EPOCH", str(total)])
        optim = build_optimizer([torch.nn.Parameter(torch.zeros(2))], cfg.OPTIM)
        return optim, build_lr_scheduler(optim, cfg.OPTIM, 5)

    earlier, whole, resumed = made(2, 0.1), made(3, 0.2), made(3, 0.2)
    whole[0].step()  # there is no gradient
    for _ in range(10):
        whole[1].step()
    go_on(*resumed, earlier[0].state_dict(), steps=10)
    assert resumed[0].param_groups[0]["lr"] == whole[0].param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TRAINER.NAME", "ShortTeacher"),
        ("DATASET.NUM_SHOTS", 2),
        ("DATASET.SUBSAMPLE_CLASSES", "base"),
        ("MODEL.BACKBONE.NAME", "resnet50"),
    ],
)
def test_what_must_not_change_is_refused_by_name(root, finished, tmp_path, key, value):
    stop_at(build(root, tmp_path / "half"), 2)
    for theirs in (finished, tmp_path / "half"):
        with pytest.raises(UserError, match=f"cannot go on with: {key} .*, asked for '?{value}'?"):
            build(root, tmp_path / "out", key, value, "RESUME", theirs, name="ShortLosses", epochs=6).train()
    assert not os.path.exists(tmp_path / "out" / "head")


@pytest.mark.parametrize("final", ["last_step", "best_val"])
@pytest.mark.parametrize("epochs", [2, 4])
def test_with_no_epoch_left_the_loaded_weights_are_saved_and_tested_as_what_they_are(
    root, finished, tmp_path, epochs, final
):
    cfg = style_config(root, tmp_path, "ShortLosses", OPTIM__MAX_EPOCH=epochs, TEST__FINAL_MODEL=final)
    merge_pairs(cfg, ["RESUME", str(finished)])
    found = run(cfg)
    theirs = load_checkpoint(finished / "head" / "model.pth.tar-4")
    ours = load_checkpoint(tmp_path / "head" / "model.pth.tar-4")
    assert same(dict(ours["state_dict"]), dict(theirs["state_dict"])) and ours["epoch"] == 4
    assert (found["epochs"], found["max_epoch"], found["chosen_on"]) == (4, epochs, "last_step")
    again = run(style_config(root, tmp_path / "eval", "ShortLosses"), eval_only=True, model_dir=str(tmp_path))
    assert (again["metrics"], again["epochs"]) == (found["metrics"], 4)


@pytest.mark.parametrize("final", ["last_step", "best_val"])
@pytest.mark.parametrize("name", ["ShortLosses", "StylePrompt"])
def test_without_epochs_a_run_only_tests(root, tmp_path, name, final):
    found = run(style_config(root, tmp_path, name, OPTIM__MAX_EPOCH=0, TEST__FINAL_MODEL=final))
    assert (found["epochs"], found["history"], found["chosen_on"]) == (0, [], "last_step")
    set_random_seed(1)
    built = build_trainer(style_config(root, tmp_path / "b", name, TEST__FINAL_MODEL=final))
    assert built.test() == found["metrics"]["accuracy"]


def test_a_folder_without_checkpoints_is_begun_from_scratch(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    resumed = build(root, tmp_path / "out", "RESUME", tmp_path / "empty", epochs=1)
    resumed.train()
    assert resumed.start_epoch == 0 and "No checkpoint found, train from scratch" in capsys.readouterr().out


def test_the_best_model_of_the_other_folder_is_still_the_best(root, tmp_path):
    best = ["TEST.FINAL_MODEL", "best_val"]
    stop_at(build(root, tmp_path / "half", *best, *EACH), 2)
    found = load_checkpoint(tmp_path / "half" / "head" / "model-best.pth.tar")
    resumed = build(root, tmp_path / "out", *best, "RESUME", tmp_path / "half", "OPTIM.LR", 1e-12)
    resumed.train()
    kept = load_checkpoint(tmp_path / "out" / "head" / "model-best.pth.tar")
    assert kept["val_result"] == resumed.best_result >= found["val_result"]
    if kept["epoch"] == found["epoch"]:
        assert same(checkpoints(tmp_path / "half")["head/model-best.pth.tar"], kept)
    (tmp_path / "half" / "head" / "model-best.pth.tar").unlink()
    alone = build(root, tmp_path / "alone", *best, "RESUME", tmp_path / "half")
    alone.train()
    assert load_checkpoint(tmp_path / "alone" / "head" / "model-best.pth.tar")["epoch"] in (3, 4)


def test_a_best_model_that_is_newer_than_the_other_folders_state_is_found_again(root, tmp_path):
    best = ["TEST.FINAL_MODEL", "best_val"]
    half = build(root, tmp_path / "half", *best, *FIRST)
    half._progress.saving_held = contextlib.nullcontext  # as a kill
    stop_at(half, 3)
    found = load_checkpoint(tmp_path / "half" / "head" / "model-best.pth.tar")
    assert found["epoch"] > load_checkpoint(tmp_path / "half" / "resume.pt")["epoch"] == 1
    whole = build(root, tmp_path / "whole", *best)
    whole.train()
    resumed = build(root, tmp_path / "out", *best, "RESUME", tmp_path / "half")
    resumed.train()
    assert whole.best_result == resumed.best_result
    assert same(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "out"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_trainer_with_its_own_loop_over_batches_sees_the_same_images_once_resumed(root, tmp_path, epoch):
    seen = []

    class OwnLoop(TRAINER_REGISTRY.get("ShortLosses")):
        def run_epoch(self):
            self.set_model_mode("train")
            self.num_batches = len(self.train_loader_x)
            for number, batch in enumerate(self.train_loader_x):
                self.batch_idx = number
                seen.append((self.epoch, self.batch_idx, batch["img"].clone()))
                self.forward_backward(batch)

    def own(folder):
        set_random_seed(1)
        keys = {"OPTIM__MAX_EPOCH": 4, "TRAIN__RESUME_SECONDS": 0.0}
        return OwnLoop(style_config(root, tmp_path / folder, "ShortLosses", **keys))

    whole = own("whole")
    whole.train()
    images, seen[:] = list(seen), []
    stop_at(own("halves"), epoch, batch=0)
    seen.clear()
    halves = own("halves")
    halves.train()
    assert same(seen, [entry for entry in images if entry[0] >= epoch])
    assert not torch.equal(images[0][2], images[3][2])  # else the views were all alike and the test shows nothing
    assert same(checkpoints(whole.output_dir), checkpoints(halves.output_dir))
