"""What an evaluation says of the trained model comes from that model's own folder, never from its own command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dassl.engine import TRAINER_REGISTRY, launch
from dassl.engine.launch import AlreadyFinished
from dassl.report.methods import named_weights, row_of
from dassl.utils import UserError
from mergetune import merge
from mergetune.report import METHODS
from tests.fixtures import condu_runs, coop_runs, dassl_style_world
from tests.fixtures.coop_runs import built, context, results

run, shared, stage1 = coop_runs.run, coop_runs.shared, coop_runs.stage1  # fixtures
runs, toy_root = condu_runs.runs, condu_runs.toy_root

OF_MODEL = ("preset", "shots", "seed", "max_epoch", "lmc", "data_seen", "source", "source_subset", "templates")
CSC = {"TRAINER__COOP__CSC": True, "TRAINER__COOP__CTX_INIT": False, "TRAINER__COOP__N_CTX": 2}


def of_model(record):
    return {name: record[name] for name in OF_MODEL if name in record}


def label(record):
    return METHODS.label(record["trainer"], record["preset"])


@pytest.fixture(scope="session")
def changed(shared, stage1):
    """The folder of a run of preset paper with another TAU and fewer epochs; to be read only."""
    return shared(
        "CoOp_LMC", "changed", "--resume-coop", stage1, config="CoOp_LMC/paper", epochs=2, TRAINER__LMC__TAU=1.0
    )


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"TRAINER__LMC__TAU": 1.0, "epochs": 2},
        {"TRAINER__LMC__TAU": 0.6, "TRAINER__LMC__BETA": 9.0, "epochs": 7, "DATASET__NUM_SHOTS": 4, "SEED": 3},
        {"config": "CoOp_LMC/released"},
    ],
    ids=["none", "the same", "others", "another preset"],
)
def test_whatever_an_evaluation_is_given_it_describes_the_model_as_the_training_did(run, changed, keys):
    trained = results(changed)
    assert trained["preset"] == "paper, changed: OPTIM.MAX_EPOCH, TRAINER.LMC.TAU"
    keys = {"config": "CoOp_LMC/paper", "epochs": 50, "DATASET__SUBSAMPLE_CLASSES": "new"} | keys
    found = results(run("CoOp_LMC", "test", "--eval-only", "--model-dir", changed, **keys))
    assert of_model(found) == of_model(trained)
    assert (found["lmc"]["TAU"], found["epochs"]) == (1.0, 2)
    assert label(found) == label(trained) == "CoOp_LMC (paper, changed: OPTIM.MAX_EPOCH, TRAINER.LMC.TAU)"
    assert (found["subset"], found["kind"], found["classes"]["count"]) == ("new", "eval", 3)  # its own


def test_a_recipe_without_a_preset_is_marked_as_well(run, stage1):
    trained = results(stage1)
    assert label(trained) == "CoOp (changed: OPTIM.MAX_EPOCH)"
    test = results(run("CoOp", "test", "--eval-only", "--model-dir", stage1, epochs=100))
    average = results(run("CoOp_Average", "mean", "--eval-only", "--resume-coop", stage1, epochs=100))
    assert (label(test), label(average)) == (label(trained), "CoOp average (changed: OPTIM.MAX_EPOCH)")
    assert average["max_epoch"] == 3 and average["templates"].startswith("mean of ")


def test_another_trainer_and_keys_that_make_another_model_are_marked(run, stage1):
    other = results(run("KgCoOp", "kg", "--eval-only", "--model-dir", stage1))
    assert label(other) == "KgCoOp (changed: OPTIM.MAX_EPOCH, trained by CoOp)"
    key = {"TRAINER__COOP__CLASS_TOKEN_POSITION": "front"}
    moved = results(run("CoOp", "front", "--eval-only", "--model-dir", stage1, **key))
    assert moved["preset"] == "changed: OPTIM.MAX_EPOCH, TRAINER.COOP.CLASS_TOKEN_POSITION"


def test_what_nobody_knows_is_none_and_said(run, changed, tmp_path, caplog):
    for name in ("bare", "killed"):
        shutil.copytree(changed / "prompt_mid_learner", tmp_path / name / "prompt_mid_learner")
    shutil.copy(changed / "config.yaml", tmp_path / "killed")
    words = ("--eval-only", "--model-dir")
    bare = results(run("CoOp_LMC", "1", *words, tmp_path / "bare", config="CoOp_LMC/paper"))
    assert "has no results.json: preset, shots and epochs of its training are unknown" in caplog.text
    assert (label(bare), bare["shots"], bare["max_epoch"], bare["epochs"]) == ("CoOp_LMC", None, None, 2)
    assert bare["data_seen"].startswith("unknown") and bare["lmc"] is None
    killed = results(run("CoOp_LMC", "2", *words, tmp_path / "killed", config="CoOp_LMC/released"))
    assert "has no results.json: its training is not finished" in caplog.text
    assert killed["preset"] == "paper, changed: OPTIM.MAX_EPOCH, TRAINER.LMC.TAU"
    assert (killed["shots"], killed["max_epoch"], killed["unfinished"]) == (16, 2, "epochs 2 of 2, unfinished")


def test_merged_weights_keep_their_own_row(run, changed, tmp_path):
    out = merge.merge_run("ties", [changed], tmp_path / "ties")
    found = merge.evaluate(out, "new")
    assert found["preset"] == "TIES (density 0.2, scale 1)" and found["merge"]["of"] == results(changed)["preset"]
    assert (found["max_epoch"], found["lmc"]["TAU"], found["warmup"]) == (2, 1.0, None)
    save_file({"ctx": context(changed, "prompt_mid_learner")}, str(tmp_path / "x_ties_lambda_0.5.safetensors"))
    words = ("--eval-only-merge", "--model-dir", tmp_path)
    elsewhere = results(run("CoOp_LMC", "elsewhere", *words, config="CoOp_LMC/paper"))
    assert (elsewhere["preset"], elsewhere["shots"], elsewhere["lmc"]) == ("TIES (lambda 0.5)", None, None)


def test_a_stream_is_labelled_by_its_sessions(runs):
    trained = runs.go("digits")
    assert "TRAINER.CONDU.ITERATIONS" in trained["preset"] and trained["preset"].startswith("paper, changed: ")
    words = ("--eval-only", "--model-dir", runs.stream, "TRAINER.CONDU.ITERATIONS", 1000, "OPTIM.LR", 1e-5)
    found = runs.go("digits", *words, name="eval")
    assert found["preset"] == trained["preset"]
    assert METHODS.label("ConDU", found["preset"]) == f"ConDU ({found['preset']})"


# Which epoch was scored


def which(record):
    names = ("preset", "chosen_on", "instead_of", "epochs", "warmup")
    return tuple(record.get(name) for name in names) + (Path(record["weights"]["file"]).name,)


def test_the_last_epoch_of_what_validation_chose_is_evaluated_by_name_or_number(run, stage1, tmp_path):
    trained = run("CoOp_LMC", "train", "--resume-coop", stage1, OPTIM__LR=0.5)  # which only ruins what the first has
    preset, own = results(trained)["preset"], results(trained)
    assert (own["chosen_on"], own["epochs"], own["warmup"]) == ("validation", 3, True) and "instead_of" not in own
    first, last = (
        torch.load(trained / "prompt_mid_learner" / name)["state_dict"]["ctx"]
        for name in ("model-best.pth.tar", "model.pth.tar-3")
    )
    assert (first - context(stage1)).abs().max() < 1e-3 < (last - context(stage1)).abs().max()  # rate 1e-5 against 0.5
    words = ("--eval-only", "--model-dir", trained)
    for name, named, keys in (("a", ("--load-epoch", "last"), {}), ("b", ("--load-epoch", 3), {"epochs": 9})):
        found = results(run("CoOp_LMC", name, *words, *named, OPTIM__WARMUP_EPOCH=7, **keys))  # which only trains
        assert which(found) == (preset, "last_step", "best_val", 3, False, "model.pth.tar-3")
        assert row_of(found, METHODS).label == f"CoOp_LMC ({preset}, last epoch)"
    usual = results(run("CoOp_LMC", "c", *words, OPTIM__WARMUP_EPOCH=0))
    assert which(usual) == (preset, "validation", None, 1, True, "model-best.pth.tar")
    assert row_of(usual, METHODS).label == f"CoOp_LMC ({preset})"
    with pytest.raises(AlreadyFinished, match="another recipe: the weights in .* are others"):
        run("CoOp_LMC", "a", *words)
    with pytest.raises(AlreadyFinished, match="holds a finished run; --overwrite"):
        run("CoOp_LMC", "a", *words, "--load-epoch", "last")
    shutil.copytree(trained / "prompt_mid_learner", tmp_path / "bare" / "prompt_mid_learner")
    bare = results(run("CoOp_LMC", "d", "--eval-only", "--model-dir", tmp_path / "bare", "--load-epoch", "last"))
    assert which(bare)[1:] == ("epoch 3", "best_val", 3, None, "model.pth.tar-3")  # nobody knows of how many


def test_of_a_model_that_was_never_trained_the_last_epoch_is_none(run):
    found = results(run("ZeroshotCLIP", "zero-shot", "--eval-only", "--load-epoch", "last"))
    assert (found["chosen_on"], found["epochs"]) == ("none", None)


def test_a_choice_that_leaves_out_the_warm_up_is_no_published_recipe(run, stage1):
    found = results(run("CoOp_LMC", "1", "--resume-coop", stage1, OPTIM__LR=0.5, TEST__SKIP_WARMUP=True))
    assert (found["chosen_on"], found["warmup"]) == ("validation", False)
    assert found["preset"] == "released, changed: OPTIM.LR, OPTIM.MAX_EPOCH, TEST.SKIP_WARMUP"


def test_a_last_epoch_that_is_lost_is_no_other(run, stage1, tmp_path):
    trained = run("CoOp_LMC", "train", "--resume-coop", stage1, TRAIN__CHECKPOINT_FREQ=1)
    third = results(run("CoOp_LMC", "2", "--eval-only", "--model-dir", trained, "--load-epoch", 2))
    assert which(third)[1:] == ("epoch 2", "best_val", 2, False, "model.pth.tar-2")
    assert named_weights(third) == "epoch 2"
    words = ("--eval-only", "--model-dir", trained, "--load-epoch", "last")
    (trained / "prompt_mid_learner" / "model.pth.tar-3").unlink()
    with pytest.raises(UserError, match=r"has lost model\.pth\.tar-3, which its run wrote"):
        run("CoOp_LMC", "lost", *words)
    for number in (1, 2):
        (trained / "prompt_mid_learner" / f"model.pth.tar-{number}").unlink()
    (trained / "results.json").unlink()
    with pytest.raises(UserError, match=r"holds no last epoch of prompt_mid_learner: .*found model-best\.pth\.tar"):
        run("CoOp_LMC", "best", *words)
    file = trained / "prompt_mid_learner" / "model-best.pth.tar"
    with pytest.raises(UserError, match="one file of weights: there is no epoch last to choose"):
        run("CoOp_LMC", "file", "--eval-only", "--model-dir", file, "--load-epoch", "last")


# Models that know their own classes only


@pytest.fixture(scope="session")
def own_classes(shared):
    """A run with class-specific prompts, on the three base classes; to be read only."""
    return shared("CoOp", "csc", **CSC)


def by_folder(run, folder, subset):
    run("CoOp", f"eval_{subset}", "--eval-only", "--model-dir", folder, DATASET__SUBSAMPLE_CLASSES=subset, **CSC)


def by_average(run, folder, subset):
    keys = {**CSC, "DATASET__SUBSAMPLE_CLASSES": subset}
    run("CoOp_Average", f"mean_{subset}", "--eval-only", "--resume-coop", folder, **keys)


def by_merge(run, folder, subset):
    merge.evaluate(merge.merge_run("ties", [folder], run.folder / "ties", base="zeros"), subset)


def by_stage2(run, folder, subset):
    keys = {**CSC, "DATASET__SUBSAMPLE_CLASSES": subset}
    run("CoOp_LMC", f"stage2_{subset}", "--resume-coop", folder, **keys)


@pytest.mark.parametrize("evaluate", [by_folder, by_average, by_merge, by_stage2])
def test_class_specific_prompts_are_scored_on_their_own_classes_alone(run, own_classes, evaluate):
    evaluate(run, own_classes, "base")
    with pytest.raises(UserError, match=r"trained on 3 classes \(abyssinian \.\. bengal\), this run has 3 \(boxer"):
        evaluate(run, own_classes, "new")


def test_any_trainer_may_say_that_its_model_is_bound_to_its_classes(tmp_path):
    world = dassl_style_world.write_images(tmp_path / "data")
    bound = type("Bound", (TRAINER_REGISTRY.get("ShortLosses"),), {"bound_to_classes": "its head has a row a class"})
    TRAINER_REGISTRY.register(bound)
    try:
        for name in ("train", "base", "new"):
            subset = "base" if name == "train" else name
            cfg = dassl_style_world.style_config(world, tmp_path / name, "Bound", DATASET__SUBSAMPLE_CLASSES=subset)
            if name == "new":
                with pytest.raises(UserError, match="trained on 3 classes .*: its head has a row a class"):
                    launch.run(cfg, eval_only=True, model_dir=str(tmp_path / "train"))
            else:
                launch.run(cfg, eval_only=name != "train", model_dir=str(tmp_path / "train"))
    finally:
        del TRAINER_REGISTRY._obj_map["Bound"]


def test_older_folders_are_compared_as_far_as_they_say(run, own_classes, tmp_path, caplog):
    shutil.copytree(own_classes, tmp_path / "old")
    (tmp_path / "old" / "classes.json").unlink()
    with pytest.raises(UserError, match="its prompts are class-specific"):
        by_folder(run, tmp_path / "old", "new")
    (tmp_path / "old" / "results.json").unlink()
    by_folder(run, tmp_path / "old", "new")
    assert "does not say what its classes are called, only their number is compared" in caplog.text
    with pytest.raises(UserError, match="does not fit prompt_learner"):
        by_folder(run, tmp_path / "old", "all")


def test_another_backbone_is_refused(run, stage1, tmp_path):
    folder = shutil.copytree(stage1, tmp_path / "moved")
    facts = results(folder)
    facts["backbone"]["digest"] = "0" * 64
    (folder / "results.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"was trained on tiny \(000000000000\), this run uses tiny"):
        run("CoOp", "eval", "--eval-only", "--model-dir", folder)


# Weights that training starts from


@pytest.mark.parametrize("form", ["file", "run folder", "wrapped"])
@pytest.mark.parametrize("trainer", ["CoOp", "KgCoOp"])
def test_a_learner_starts_from_init_weights(run, stage1, tmp_path, trainer, form):
    file = stage1 / "prompt_learner" / "model.pth.tar-3"
    wrapped = {f"module.{name}": value for name, value in torch.load(file)["state_dict"].items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pth")
    given = {"file": file, "run folder": stage1, "wrapped": tmp_path / "wrapped.pth"}[form]
    started = built(run, trainer, MODEL__INIT_WEIGHTS=given)
    assert torch.equal(started.model.ctx, context(stage1))
    assert not torch.equal(built(run, trainer).model.ctx, context(stage1))
    config = f"{trainer}/vit_b16_ep100_ctxv1"
    folder = run(trainer, "out", MODEL__INIT_WEIGHTS=given, config=config, epochs=0)
    found = results(folder)
    assert torch.equal(context(folder), context(stage1))
    assert (found["epochs"], found["preset"]) == (0, "changed: MODEL.INIT_WEIGHTS, OPTIM.MAX_EPOCH")
    assert found["data_seen"].startswith("16 shots of base classes; before that: ")


@pytest.mark.parametrize(
    ("trainer", "keys", "message"),
    [
        ("CoOp", {"MODEL__INIT_WEIGHTS": "nowhere.pth"}, 'MODEL.INIT_WEIGHTS: nothing at "nowhere.pth"'),
        ("CoOp", {"TRAINER__COOP__CTX_INIT": "a photo"}, r"no name and shape in it fits .* has ctx \(2, "),
        ("ZeroshotCLIP", {}, "ZeroshotCLIP has no weights of its own"),
        ("CoOp_LMC", {"RESUME_COOP": "somewhere"}, "both say where training starts"),
        ("CoOp", {"DATALOADER__K_TRANSFORMS": 2}, "K_TRANSFORMS is 2, expected 1: a batch holds one view"),
    ],
    ids=["missing", "no fit", "no weights", "two starts", "two views"],
)
def test_what_cannot_start_training_is_refused_before_it(run, stage1, trainer, keys, message):
    keys = {"MODEL__INIT_WEIGHTS": stage1 / "prompt_learner" / "model.pth.tar-3"} | keys
    with pytest.raises(UserError, match=message):
        built(run, trainer, **keys)


def test_a_stage_1_folder_that_nothing_continues_is_said(run, stage1, caplog):
    built(run, "CoOp", "--resume-coop", stage1)
    assert "RESUME_COOP (--resume-coop) is not used: CoOp continues no stage 1" in caplog.text
    caplog.clear()
    built(run, "CoOp_LMC", "--resume-coop", stage1)
    assert "is not used" not in caplog.text


def test_what_stage_1_changed_is_marked_on_what_continues_it(run, stage1):
    whole = built(run, "CoOp_LMC", "--resume-coop", stage1, config="CoOp_LMC/paper", epochs=50)
    assert whole.metadata()["preset"] == "paper, changed: stage 1's OPTIM.MAX_EPOCH"
    both = built(run, "CoOp_LMC", "--resume-coop", stage1, config="CoOp_LMC/paper", epochs=3)
    assert both.metadata()["preset"] == "paper, changed: OPTIM.MAX_EPOCH"
