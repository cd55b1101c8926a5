"""Is the run that lies in a folder the one that is asked for? Finished and interrupted runs, evaluations, inputs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from dassl.engine.launch import AlreadyFinished
from dassl.engine.recipe import changed, content_digest, differences, unfinished
from dassl.utils import UserError
from tests.conftest import ROOT
from tests.fixtures import coop_runs
from tests.fixtures.coop_runs import Runs, results

run, shared, stage1 = coop_runs.run, coop_runs.shared, coop_runs.stage1  # fixtures


@pytest.fixture(scope="session")
def stage2(shared, stage1):
    """The folder of a finished stage 2 of 1 epoch; to be read only."""
    return shared("CoOp_LMC", "stage2", "--resume-coop", stage1, epochs=1)


@pytest.fixture(scope="session")
def tested(shared, stage1):
    """The folder of a finished evaluation; to be read only."""
    return shared("CoOp", "tested", "--eval-only", "--model-dir", stage1)


def asked(runs, trainer, folder, *words, **keys):
    return train.differences(runs.argv(trainer, folder.name, *words, "--output-dir", folder, **keys))


def test_values_are_compared_as_they_are_read():
    recorded = {"OPTIM.LR": 1, "INPUT.SIZE": [8, 8], "GONE": 1, "TRAINER.SOME.KEY": 2}
    assert changed(recorded, {"OPTIM.LR": 1.0, "INPUT.SIZE": (8, 8), "TRAINER.NEW.KEY": 5, "TEST.SPLIT": "test"}) == []
    assert changed(recorded, {"OPTIM.LR": 2, "TEST.SPLIT": "val", "INPUT.SIZE": (8, 9)}) == [
        "OPTIM.LR 1, asked for 2",
        "TEST.SPLIT 'test', asked for 'val'",  # the record lacks it: its default
        "INPUT.SIZE [8, 8], asked for (8, 9)",
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"FEATURES__VIEWS": 3}, {"TEST__SPLIT": "val"}, {"OPTIM__LR": 0.5}, {"TRAINER__COOP__CSC": True}, {"SEED": 2},
        {"DATASET__NUM_SHOTS": 1}, {"TEST__EVALUATOR": "Other"},
    ],
    ids=str,
)  # fmt: skip
def test_a_finished_run_of_another_recipe_is_named_with_the_ways_on(shared, stage1, keys):
    if keys == {"TEST__EVALUATOR": "Other"}:
        keys = {"INPUT__INTERPOLATION": "nearest"}
    (key,) = (name.replace("__", ".") for name in keys)
    (line,) = asked(shared, "CoOp", stage1, **keys)
    assert line.startswith(f"{key} ") and ", asked for " in line
    before = {path: path.stat().st_mtime_ns for path in stage1.rglob("*")}
    with pytest.raises(AlreadyFinished, match=f"another recipe: {key} .*--overwrite.*another --output-dir"):
        shared("CoOp", "stage1", **keys)
    assert {path: path.stat().st_mtime_ns for path in stage1.rglob("*") if path.name != ".lock"} == {
        path: time for path, time in before.items() if path.name != ".lock"
    }


def test_where_and_how_fast_it_runs_and_what_others_read_is_no_recipe(shared, stage1, tmp_path):
    shutil.copytree(shared.data, tmp_path / "data")
    keys = {"DATALOADER__NUM_WORKERS": 1, "TRAIN__PRINT_FREQ": 1, "TRAINER__MMADAPTER__ADAPTER_DIM": 3,
            "TRAINER__LMC__TAU": 0.5, "TEST__PER_CLASS_RESULT": True}  # fmt: skip
    assert asked(shared, "CoOp", stage1, "--root", tmp_path / "data", **keys) == []
    with pytest.raises(AlreadyFinished, match="holds a finished run; --overwrite"):
        shared("CoOp", "stage1", **keys)


@pytest.mark.parametrize("moved", [False, True])
def test_stage_1_counts_by_what_lies_there_wherever_that_is(shared, stage1, stage2, tmp_path, moved):
    place = shutil.copytree(stage1, tmp_path / "moved") if moved else stage1
    assert asked(shared, "CoOp_LMC", stage2, "--resume-coop", place, epochs=1) == []
    assert len(results(stage2)["inputs"]["RESUME_COOP"]) == 32
    assert asked(shared, "CoOp_LMC", stage2, "--resume-coop", tmp_path / "gone", epochs=1) != []


def test_what_came_of_a_run_that_was_made_anew_is_of_another_recipe(shared, run, stage1, stage2, tested, tmp_path):
    anew = run("CoOp", "anew", OPTIM__LR=0.1)
    (line,) = asked(shared, "CoOp_LMC", stage2, "--resume-coop", anew, epochs=1)
    assert line == f'RESUME_COOP "{anew}" holds something else than the run began from'
    (line,) = asked(shared, "CoOp", tested, "--eval-only", "--model-dir", anew)
    assert "others than those that were scored" in line
    again = run("CoOp", "again")  # bit-equal, so what came of it still stands
    assert content_digest(again) == content_digest(stage1) != content_digest(anew)
    assert asked(shared, "CoOp", tested, "--eval-only", "--model-dir", tmp_path) == []  # what is gone says nothing
    assert asked(shared, "CoOp", tested, "--eval-only", "--model-dir", again) == []


def test_an_evaluation_is_compared_in_what_it_scored_not_in_training_keys(shared, stage1, tested):
    line = ("--eval-only", "--model-dir", stage1)
    keys = {"epochs": 77, "OPTIM__LR": 1.0, "DATASET__NUM_SHOTS": 1, "SEED": 5, "TRAINER__COOP__W": 1.0}
    assert asked(shared, "CoOp", tested, *line, **keys) == []
    for key, value in {"DATASET__SUBSAMPLE_CLASSES": "new", "TEST__SPLIT": "val"}.items():
        assert [each.split()[0] for each in asked(shared, "CoOp", tested, *line, **{key: value})] == [
            key.replace("__", ".")
        ]
    assert asked(shared, "CoOp", tested) == ["kind eval, asked for train"]


def test_other_images_or_labels_are_another_data_set(shared, stage1, tmp_path):
    shutil.copytree(shared.data, tmp_path / "data")
    split = tmp_path / "data" / "oxford_pets" / "split_zhou_OxfordPets.json"
    lists = json.loads(split.read_text())
    lists["test"] = lists["test"][1:]
    split.write_text(json.dumps(lists))
    assert asked(shared, "CoOp", stage1, "--root", tmp_path / "data") == [
        "the data set holds something else than the run began from"
    ]
    shutil.rmtree(tmp_path / "data")  # what is gone says nothing
    assert asked(shared, "CoOp", stage1, "--root", tmp_path / "data") == []


def test_an_interrupted_run_is_refused_before_anything_of_it_is_overwritten(run):
    folder = stopped(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match=r"half a run of another recipe: OPTIM.LR .*, asked for 0.5. Give that config"):
        run("CoOp", folder.name, OPTIM__LR=0.5)
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert asked(run, "CoOp", folder, TEST__SPLIT="val") == ["TEST.SPLIT 'test', asked for 'val'"]
    assert asked(run, "CoOp", folder) == []
    assert results(run("CoOp", folder.name))["epochs"] == 3


def test_an_interrupted_run_goes_on_where_it_and_its_stage_1_have_been_moved_to(run, stage1):
    place = shutil.copytree(stage1, run.folder / "stage1")
    folder = stopped(run, 1, "CoOp_LMC", "--resume-coop", place, epochs=2)
    place.rename(run.folder / "moved")
    assert asked(run, "CoOp_LMC", folder, "--resume-coop", run.folder / "moved", epochs=2) == []
    run("CoOp_LMC", "stopped", "--resume-coop", run.folder / "moved", epochs=2)
    assert len(results(folder)["history"]) == 2
    anew = run("CoOp", "anew", OPTIM__LR=0.1)
    folder = stopped(Runs(run.data, run.folder / "b", run.features), 1, "CoOp_LMC", "--resume-coop", anew, epochs=2)
    shutil.rmtree(anew)
    run("CoOp", "anew")
    with pytest.raises(UserError, match='RESUME_COOP ".*anew" holds something else than the run began from'):
        Runs(run.data, run.folder / "b", run.features)("CoOp_LMC", "stopped", "--resume-coop", anew, epochs=2)


def stopped(run, epoch=2, trainer="CoOp", *words, **keys):
    """The folder of a run that was broken off at the start of an epoch, from 0; the one before is saved."""
    from dassl.engine import TRAINER_REGISTRY

    keys = {"TRAIN__RESUME_SECONDS": 0} | keys

    def stop(self):
        if self.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER_REGISTRY.get(trainer), "before_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run(trainer, "stopped", *words, **keys)
    return run.folder / "stopped"


def test_what_begins_from_an_unfinished_run_says_how_far_that_is(run, stage1, caplog):
    folder = stopped(run)
    torch.save(torch.load(stage1 / "prompt_learner" / "model.pth.tar-3"), folder / "model.pth.tar-2")
    (folder / "prompt_learner").mkdir()
    (folder / "model.pth.tar-2").rename(folder / "prompt_learner" / "model.pth.tar-2")
    assert unfinished(stage1) == "" and unfinished(folder) == "epochs 2 of 3, unfinished"
    test = run("CoOp", "test", "--eval-only", "--model-dir", folder)
    assert results(test)["unfinished"] == "epochs 3 of 3, unfinished"  # what the weights themselves say
    second = run("CoOp_LMC", "second", "--resume-coop", folder, epochs=1)
    assert results(second)["unfinished"] == "RESUME_COOP: epochs 2 of 3, unfinished"
    average = results(run("CoOp_Average", "average", "--eval-only", "--resume-coop", folder))
    assert average["unfinished"] == "RESUME_COOP: epochs 2 of 3, unfinished" and average["shots"] == 16
    assert not any("unfinished" in (each["preset"] or "") for each in (results(test), average))  # it is said once
    assert "begins from what is not finished: RESUME_COOP: epochs 2 of 3, unfinished" in caplog.text


TEST, STAGE2 = ("CoOp", "--eval-only", "--model-dir"), ("CoOp_LMC", "--resume-coop")
READERS = {"classes.json": [STAGE2], "config.yaml": [TEST], "prompt_learner/model.pth.tar-3": [TEST, STAGE2]}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_run_is_refused_by_what_reads_it(run, stage1, name):
    mine = shutil.copytree(stage1, run.folder / "mine")
    other = run("CoOp", "other", DATASET__SUBSAMPLE_CLASSES="new", epochs=3)
    shutil.copy(other / name, mine / name)
    for trainer, *words in READERS[name]:
        with pytest.raises(UserError, match=f"{mine / name} is not of the run of .*results.json"):
            run(trainer, trainer, *words, mine)


def test_a_results_file_that_cannot_be_read_is_no_finished_run(run, stage1):
    folder = shutil.copytree(stage1, run.folder / "emptied")
    (folder / "results.json").write_text("")
    assert differences(folder, None) == []
    assert results(run("CoOp", "emptied"))["metrics"] == results(stage1)["metrics"]


def test_a_run_of_an_earlier_version_is_compared_by_what_it_has(run):
    folder = shutil.copytree(ROOT / "tests" / "fixtures" / "earlier_runs" / "finished", run.folder / "finished")
    facts = results(folder)
    keys = {"FEATURES__DIR": run.features, "OPTIM__MAX_EPOCH": facts["max_epoch"]}
    assert "recipe" not in facts
    assert asked(run, facts["trainer"], folder, **keys) == []
    assert asked(run, facts["trainer"], folder, **keys | {"OPTIM__LR": 0.7})[0].startswith("OPTIM.LR ")


# What an interrupted run finds of its own

BEST = {"TEST__FINAL_MODEL": "best_val"}


@pytest.fixture(scope="session")
def whole(shared):
    """The results of a run that chooses its model on validation."""
    return results(shared("CoOp", "whole", **BEST))


def same_run(ours, theirs):
    return all(ours[name] == theirs[name] for name in ("metrics", "correct", "chosen_on", "epochs", "history"))


@pytest.mark.parametrize("what", ["lost", "exchanged", "of another run"])
def test_a_best_model_that_is_not_the_interrupted_runs_own_is_named(run, stage1, what):
    folder = stopped(run, **BEST)
    file = folder / "prompt_learner" / "model-best.pth.tar"
    kept = file.read_bytes()
    other = torch.load(file)
    if what == "lost":
        file.unlink()
    elif what == "exchanged":
        other["state_dict"]["ctx"] += 1
        torch.save(other, file)
    else:
        other = torch.load(stage1 / "prompt_learner" / "model.pth.tar-3")
        torch.save(other | {"epoch": 4}, file)  # which is none that a run of 3 can have come to
    message = f"{file}, the best model so far, is (gone|not the one that this run wrote).*--overwrite"
    with pytest.raises(UserError, match=message):
        run("CoOp", folder.name, **BEST)
    if what != "of another run":
        file.write_bytes(kept)
        assert results(run("CoOp", folder.name, **BEST))["chosen_on"] == "validation"


@pytest.mark.parametrize(
    ("seconds", "accuracies", "epoch"),
    [(0, [0, 1, 2], 2), (1e6, [1, 2, 3], 3), (1e6, [2, 1, 3, 3], 3), (1e6, [2, 1, 3, 4], 4), (1e6, [1, 0, 2, 0.5], 3)],
)
def test_a_best_model_written_since_resume_pt_is_found_again(run, monkeypatch, seconds, accuracies, epoch):
    """accuracies: on validation, by epoch; the run is killed behind the validation of `epoch`."""
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.resume import ResumeState

    save, test = ResumeState.save, TRAINER_REGISTRY.get("CoOp").test

    def given(self, split=None):  # on these few images the first epoch would be the best
        accuracy = test(self, split)
        return accuracy if split is None else float(accuracies[self.epoch])

    def killed(self):
        if self.trainer.epoch + 1 == epoch:
            self._held = None  # a kill writes nothing more
            raise KeyboardInterrupt
        save(self)

    keys = BEST | {"epochs": len(accuracies), "TRAIN__RESUME_SECONDS": seconds}
    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "test", given)
    whole, best = run("CoOp", "whole", **keys), Path("prompt_learner", "model-best.pth.tar")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ResumeState, "save", killed)
        run("CoOp", "stopped", **keys)
    stopped = run.folder / "stopped"
    assert torch.load(stopped / best)["epoch"] == epoch
    assert torch.load(stopped / "resume.pt")["epoch"] == 1
    assert same_run(results(run("CoOp", "stopped", **keys)), results(whole))
    ours, theirs = (torch.load(folder / best) for folder in (stopped, whole))
    assert ours["epoch"] == theirs["epoch"] and torch.equal(ours["state_dict"]["ctx"], theirs["state_dict"]["ctx"])


@pytest.mark.parametrize("lost", ["resume.pt", "results.json"])
def test_without_resume_pt_a_run_starts_afresh_and_ends_as_one_undisturbed(run, whole, lost):
    if lost == "resume.pt":
        folder = stopped(run, **BEST)
    else:
        folder = run("CoOp", "stopped", **BEST)
        (folder / "prompt_learner" / "model.pth.tar-9").write_bytes(b"of an attempt with more epochs")
    (folder / lost).unlink()
    assert same_run(results(run("CoOp", "stopped", **BEST)), whole)
    assert not (folder / "prompt_learner" / "model.pth.tar-9").exists()


def test_a_damaged_resume_file_names_the_way_on(run):
    folder = stopped(run)
    content = (folder / "resume.pt").read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"OPTIM.LR")] ^= 1  # in the pickle, where it would be a key of another name
    for damaged in (content[: len(content) // 2], flipped):
        (folder / "resume.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"resume.pt.* is damaged.*--overwrite starts the run afresh"):
            run("CoOp", folder.name)
    assert results(run("CoOp", folder.name, "--overwrite"))["epochs"] == 3


def test_a_folder_that_is_removed_meanwhile_is_no_finished_run(run):
    from dassl.engine import TRAINER_REGISTRY

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER_REGISTRY.get("CoOp"), "before_epoch", lambda self: shutil.rmtree(run.folder / "gone"))
        with pytest.raises(UserError, match="gone.* was removed or emptied while the run was in it"):
            run("CoOp", "gone", epochs=1)
    assert not (run.folder / "gone" / "results.json").exists()


def test_a_refusal_leaves_nothing_and_a_folder_may_be_called_x_txt(run):
    with pytest.raises(UserError, match="name its folder with --resume-coop"):
        run("CoOp_LMC", "refused")
    assert not (run.folder / "refused").exists()
    (run.folder / "mine").mkdir()
    (run.folder / "mine" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match="Model not found"):
        run("CoOp", "mine", "--eval-only", "--model-dir", run.folder / "nowhere")
    assert [path.name for path in (run.folder / "mine").iterdir()] == ["notes.md"]
    assert (run("ZeroshotCLIP", "x.txt", "--eval-only") / "log.txt").is_file()
    assert not list(run.folder.glob("log*"))
