"""What a model that was trained on one data set keeps of others: the entry `others` of an evaluation on new classes."""

import os

import pytest

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
