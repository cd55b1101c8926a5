"""What a model that was trained on one data set keeps of others: the entry `others` of an evaluation on new classes."""

import json
import os
import shutil

import pytest
import torch

from dassl.engine.launch import AlreadyFinished
from dassl.utils import UserError
from tests.fixtures.coop_runs import Runs, results, shared, stage1  # noqa: F401
from tests.fixtures.image_folders import write_split

NEW = {"DATASET__SUBSAMPLE_CLASSES": "new"}
EVERY = {"DATASET__SUBSAMPLE_CLASSES": "all", "DATASET__NUM_SHOTS": -1}


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):  # noqa: F811
    """Runs below a root that has three of the eleven public sets."""
    root = tmp_path_factory.mktemp("others")
    os.symlink(shared.data / "oxford_pets", root / "oxford_pets")
    for folder, images, name in (("eurosat", "2750", "EuroSAT"), ("dtd", "images", "DescribableTextures")):
        (root / folder).mkdir()
        write_split(root / folder, images, f"split_zhou_{name}.json", classes=("cat", "dog", "river"), counts=(2, 1, 9))
    return Runs(root, root / "runs", root / "features")


def others_of(run, name, *words, trainer="CoOp", asked="auto", **keys):
    return results(run(trainer, name, "--eval-only", *words, **(NEW | keys | {"TEST__OTHERS": asked})))["others"]


def alone(run, name, data, *words, trainer="CoOp", **keys):
    """(correct, total) of an evaluation of its own on all classes of a data set."""
    words = ("--eval-only", *words, "--dataset-config-file", f"configs/datasets/{data}.yaml")
    found = results(run(trainer, name, *words, **(EVERY | keys)))
    assert "others" not in found
    return found["correct"], found["total"]


def test_each_other_set_is_scored_as_an_evaluation_of_its_own_scores_it(run, stage1):  # noqa: F811
    entry = others_of(run, "coop", "--model-dir", stage1)
    assert entry["asked"] == ["auto"] and set(entry["sets"]) == {"EuroSAT", "DescribableTextures"}
    for name, data in (("EuroSAT", "eurosat"), ("DescribableTextures", "dtd")):
        row = entry["sets"][name]
        assert (row["correct"], row["total"]) == alone(run, f"coop_{data}", data, "--model-dir", stage1)
        assert row["total"] == 27 and row["template"] == "learned prompt, from 'a photo of a'"
        assert row["split_digest"] == results(run.folder / f"coop_{data}")["split_digest"]


def test_a_model_without_a_prompt_has_the_same_words_for_every_set(run):
    words = "a photo of a {}."
    entry = others_of(run, "zero", trainer="ZeroshotCLIP")
    assert {row["template"] for row in entry["sets"].values()} == {words}
    row = entry["sets"]["DescribableTextures"]  # whose own template is another
    plain = alone(run, "zero_dtd", "dtd", trainer="ZeroshotCLIP", TRAINER__ZEROSHOT__TEMPLATES=words)
    assert (row["correct"], row["total"]) == plain


def test_only_new_classes_carry_others_and_only_where_they_are_asked_for(run, stage1):  # noqa: F811
    model = ("--eval-only", "--model-dir", stage1)
    assert "others" not in results(run("CoOp", "unasked", *model, **NEW))
    assert "others" not in results(run("CoOp", "base", *model, TEST__OTHERS="auto"))


def test_a_named_set_that_is_not_there_or_unknown_is_refused(run, stage1):  # noqa: F811
    for name, what in (("food101", "food101"), ("eurosatt", r"mean \[eurosat\]")):
        with pytest.raises(UserError, match=what):
            others_of(run, "refused", "--model-dir", stage1, asked=name)
        assert not (run.folder / "refused").exists()


# Evaluations that are finished


def read(folder):
    return (folder / "results.json").read_text()


def test_a_finished_evaluation_gets_what_it_lacks_and_keeps_all_else(run, stage1):  # noqa: F811
    model, name = ("--eval-only", "--model-dir", stage1), "later"
    folder = run("CoOp", name, *model, **NEW)
    before, files = read(folder), {file.name: file.read_bytes() for file in folder.iterdir()}
    assert others_of(run, name, *model, asked="dtd")["asked"] == ["dtd"]
    assert read(folder).startswith(before[:-2] + ",\n")
    files.pop("results.json")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "results.json"} == files
    entry = others_of(run, name, *model, asked="[dtd, eurosat]")
    whole = others_of(run, "at_once", *model)
    assert entry == whole | {"asked": ["dtd", "eurosat"]} and read(folder).startswith(before[:-2] + ",\n")


def test_auto_is_what_was_there_the_first_time(run):
    others_of(run, "auto", trainer="ZeroshotCLIP")
    os.rename(run.data / "dtd", run.data / "gone")
    try:
        with pytest.raises(AlreadyFinished, match="holds a finished run"):
            others_of(run, "auto", trainer="ZeroshotCLIP")
        with pytest.raises(UserError, match="DescribableTextures: no folder dtd"):
            others_of(run, "named", trainer="ZeroshotCLIP", asked="dtd")
        assert list(others_of(run, "without", trainer="ZeroshotCLIP")["sets"]) == ["EuroSAT"]
    finally:
        os.rename(run.data / "gone", run.data / "dtd")


def test_other_weights_complete_nothing(run, stage1, tmp_path):  # noqa: F811
    shutil.copytree(stage1, tmp_path / "model")
    (tmp_path / "model" / "results.json").unlink()
    model = ("--eval-only", "--model-dir", tmp_path / "model")
    folder = run("CoOp", "weights", *model, **NEW)
    file = next((tmp_path / "model").glob("*/model.pth.tar-*"))
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["ctx"] += 1
    torch.save(checkpoint, file)
    before = read(folder)
    with pytest.raises(AlreadyFinished, match="weights .* are others than those that were scored"):
        others_of(run, "weights", *model)
    # of an earlier version, which recorded no digest
    results_file, facts = folder / "results.json", results(folder)
    results_file.write_text(json.dumps(facts | {"weights": {}, "correct": facts["correct"] + 1}))
    with pytest.raises(UserError, match=f"recorded {facts['correct'] + 1} of 12 correct, .* now has"):
        others_of(run, "weights", *model)
    results_file.write_text(before)
