"""What a model that was trained on one data set keeps of others: the entry `others` of an evaluation on new classes."""

import json
import os
import random
import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch

from dassl.clip import text_classifier
from dassl.config import with_values
from dassl.engine import full_config, others
from dassl.engine.launch import AlreadyFinished
from dassl.engine.others import lacks, other_sets, score_others
from dassl.utils import UserError
from mergetune import merge
from tests.fixtures.coop_runs import Runs, built, results, shared, stage1  # noqa: F401
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


def test_each_run_has_its_own_order_in_which_sets_are_drawn_and_encoded_and_one_in_which_they_are_written(monkeypatch):
    seen, named = [], []
    monkeypatch.setattr(others, "other_data", lambda cfg: seen.append(cfg.DATASET.NAME))
    monkeypatch.setattr(others, "_score", lambda cfg, *_: seen.append(cfg.DATASET.NAME))
    for seed in range(6):
        values = {"DATASET.NAME": "ToyShapes", "DATASET.SUBSAMPLE_CLASSES": "new", "TEST.OTHERS": "auto", "SEED": seed}
        cfg = with_values(full_config(), values)
        sets = other_sets(cfg)
        named += [list(sets), list(score_others(SimpleNamespace(cfg=cfg), sets)["sets"])]
    orders = {tuple(seen[start : start + 9]) for start in range(0, len(seen), 9)}
    assert len(orders) == 12 and all(sorted(order) == sorted(named[0]) for order in orders)
    assert all(names == named[0] for names in named) and len(named[0]) == 9


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


def test_nothing_else_of_an_evaluation_changes(run, stage1, tmp_path):  # noqa: F811
    """Others are scored with their own draws, and leave no file."""
    words = ("--eval-only", "--model-dir", stage1)
    facts = {}
    for name, more in (("plain", {}), ("beside", {"TEST__OTHERS": "auto"})):
        folder = run("CoOp", name, *words, **NEW, TEST__COMPUTE_CMAT=True, **more)
        drawn = random.random(), torch.rand(1).item(), numpy.random.rand()
        matrix = torch.load(folder / "cmat.pt", weights_only=True).tolist()
        said = [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("* ")]
        kept = {k: v for k, v in results(folder).items() if k not in ("others", "wall_s", "peak_mb", "command")}
        facts[name] = drawn, matrix, said, kept, sorted(file.name for file in folder.iterdir())
    assert facts["plain"] == facts["beside"]


TRAINED_TOWERS = {"MultiModalAdapter": "vit_b16_ep5", "PromptSRC": "vit_b16_c2_ep20_batch4_4+4ctx"}
SHALLOW = {"TRAINER__MMADAPTER__ADAPTER_START": 2, "TRAINER__MMADAPTER__ADAPTER_END": 4, "DATASET__NUM_SHOTS": 1}
SHALLOW |= {f"TRAINER__PROMPTSRC__PROMPT_DEPTH_{tower}": 3 for tower in ("TEXT", "VISION")}
SHALLOW |= {"TRAINER__MMADAPTER__PREC": "fp32", "TRAINER__PROMPTSRC__PREC": "fp32"}


@pytest.mark.parametrize("trainer", TRAINED_TOWERS)
def test_a_trained_image_tower_encodes_the_other_sets(run, trainer):
    how = {"trainer": trainer, "config": f"{trainer}/{TRAINED_TOWERS[trainer]}"}
    model = run(name=f"{trainer}_trained", epochs=1, **how, **SHALLOW)
    row = others_of(run, trainer, "--model-dir", model, asked="eurosat", **how, **SHALLOW)["sets"]["EuroSAT"]
    apart = alone(run, f"{trainer}_apart", "eurosat", "--model-dir", model, **how, **SHALLOW | EVERY)
    assert (row["correct"], row["total"]) == apart


def test_an_average_is_of_clip_with_the_common_words(run, stage1):  # noqa: F811
    how = {"trainer": "CoOp_Average", "config": "CoOp_Average/vit_b16"}
    row = others_of(run, "average", "--resume-coop", stage1, asked="eurosat", **how)["sets"]["EuroSAT"]
    words = ("--dataset-config-file", "configs/datasets/eurosat.yaml")
    trainer = built(run, "CoOp", *words, **EVERY)
    trainer.load_model(stage1)
    vectors = trainer.class_vectors(), text_classifier(trainer.clip, trainer.classnames, ["a photo of a {}."])
    trainer.text_features = lambda: sum(vectors) / 2
    trainer.test()
    assert (row["correct"], row["total"]) == (trainer.evaluator.correct, 27)
    assert row["template"].startswith("mean of 'a photo of a {}.' and learned prompt")


def test_a_merge_that_evaluates_itself_scores_them_too(run, stage1, tmp_path):  # noqa: F811
    line = ["--method", "ties", "--density", "0.2", "--scale", "1", str(stage1), "--out", str(tmp_path / "ties")]
    line += ["--root", str(run.data), "--eval", "base", "new", "--others"]
    for asked in ("eurosat", "[eurosat, dtd]"):  # the second completes what the first has left
        merge.main([*line, asked])
    assert "others" not in results(tmp_path / "ties" / "eval_base")
    entry = results(tmp_path / "ties" / "eval_new")["others"]
    assert entry["asked"] == ["eurosat", "dtd"] and list(entry["sets"]) == ["EuroSAT", "DescribableTextures"]
    row = entry["sets"]["EuroSAT"]
    assert (row["correct"], row["total"]) == alone(run, "merged", "eurosat", "--model-dir", tmp_path / "ties")


def test_a_model_that_is_bound_to_its_classes_says_so(run):
    trainer = built(run, "CoOp", **NEW, TRAINER__COOP__CSC=True, TEST__OTHERS="auto")
    entry = score_others(trainer, other_sets(trainer.cfg))
    assert entry == {"asked": ["auto"], "bound": trainer.bound_to_classes, "sets": {}} and "CSC" in entry["bound"]


# Evaluations that are finished


def read(folder):
    return (folder / "results.json").read_text()


def test_a_finished_evaluation_gets_what_it_lacks_and_keeps_all_else(run, stage1):  # noqa: F811
    model, name = ("--eval-only", "--model-dir", stage1), "later"
    folder = run("CoOp", name, *model, **NEW)
    untouched = [file for file in folder.iterdir() if file.name not in ("results.json", "config.yaml")]
    before, contents = read(folder), [file.read_bytes() for file in untouched]
    assert others_of(run, name, *model, asked="dtd")["asked"] == ["dtd"]
    assert read(folder).startswith(before[:-2] + ",\n")
    assert [file.read_bytes() for file in untouched] == contents and len(list(folder.iterdir())) == len(contents) + 2
    entry = others_of(run, name, *model, asked="[dtd, eurosat]")
    whole = others_of(run, "at_once", *model)
    assert entry == whole | {"asked": ["dtd", "eurosat"]} and read(folder).startswith(before[:-2] + ",\n")


@pytest.mark.parametrize("entry", [{}, {"asked": None}, {"asked": 5, "sets": {}}, {"asked": ["dtd"], "sets": None}])
def test_a_damaged_entry_lacks_all(entry):
    cfg = with_values(full_config(), {"TEST.OTHERS": "dtd", "DATASET.SUBSAMPLE_CLASSES": "new"})
    assert lacks({"others": entry}, ["eurosat"]) and not lacks({"others": entry}, [])
    assert score_others(SimpleNamespace(cfg=cfg), {}, results={"others": entry}) == {"asked": ["dtd"], "sets": {}}


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
