"""The record of a run by epoch: what was printed, and how validation went."""

import json
import re

import pytest
import torch

from dassl.config import merge_pairs
from dassl.engine import build_trainer
from dassl.engine.launch import run
from dassl.engine.losses import recorded
from dassl.utils import load_checkpoint, set_random_seed
from tests.fixtures.dassl_style_world import style_config, write_images


def test_an_epoch_is_added_to_and_an_earlier_one_starts_anew():
    history = []
    for epoch in (1, 2, 3):
        history = recorded(history, epoch, {"loss": 1 / epoch})
    history = recorded(history, 3, {"val_accuracy": 50})
    assert history[2] == {"epoch": 3, "loss": 1 / 3, "val_accuracy": 50}
    history = recorded(history, 2, {"loss": 9})
    assert history == [{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 9}]


def test_what_is_not_finite_is_null_and_no_name_hides_the_epoch():
    history = []
    history = recorded(history, 1, {"loss": float("nan"), "gap": float("inf"), "epoch": 7})
    assert history == [{"epoch": 1, "loss": None, "gap": None}]
    json.dumps(history, allow_nan=False)


def configure(root, output, *pairs):
    cfg = style_config(root, output, "ShortLosses", OPTIM__MAX_EPOCH=3)
    merge_pairs(cfg, ["TRAIN.PRINT_FREQ", 1, *pairs])
    set_random_seed(1)
    return cfg


def printed(log):
    """{epoch: {name: average that its last line prints}}."""
    found = {}
    for line in log.splitlines():
        if match := re.match(r"epoch \[(\d+)/3\] batch \[\d+/\d+\] .*?data \S+ \(\S+\) (.*) lr", line):
            found[int(match[1])] = {name: float(x) for name, x in re.findall(r"(\w+) \S+ \((\S+?)\)", match[2])}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def test_results_say_what_was_printed(root, tmp_path):
    run(configure(root, tmp_path, "TEST.FINAL_MODEL", "best_val"))
    results = json.loads((tmp_path / "results.json").read_text())
    lines = printed((tmp_path / "log.txt").read_text())
    assert list(lines) == [entry["epoch"] for entry in results["history"]] == [1, 2, 3]
    for entry in results["history"]:
        assert set(entry) == {"epoch", "loss", "ce", "decay", "acc", "val_accuracy"}
        assert {name: round(entry[name], 4) for name in lines[entry["epoch"]]} == lines[entry["epoch"]]
        assert entry["loss"] == pytest.approx(entry["ce"] + entry["decay"], rel=1e-5)
    best = load_checkpoint(tmp_path / "head" / "model-best.pth.tar")
    assert best["val_result"] == max(entry["val_accuracy"] for entry in results["history"])


def test_without_validation_there_is_none_and_an_evaluation_has_no_record(root, tmp_path):
    results = run(configure(root, tmp_path / "train"))
    assert all("val_accuracy" not in entry for entry in results["history"])
    assert "history" not in run(configure(root, tmp_path / "eval"), eval_only=True, model_dir=str(tmp_path / "train"))


def test_without_validation_images_the_last_epochs_model_is_the_best_which_is_said(root, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.engine.trainer.SimpleTrainer.has_validation", lambda self: False)
    run(configure(root, tmp_path, "TEST.FINAL_MODEL", "best_val"))
    assert "the data set has no validation images: it is the last" in (tmp_path / "log.txt").read_text()
    assert load_checkpoint(tmp_path / "head" / "model-best.pth.tar")["epoch"] == 3


def test_a_resume_file_from_before_is_read(root, tmp_path):
    trainer = build_trainer(configure(root, tmp_path))
    trainer.after_train = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    state = load_checkpoint(tmp_path / "resume.pt")
    assert [entry["epoch"] for entry in state.pop("history")] == [1, 2, 3]
    again = build_trainer(configure(root, tmp_path))
    torch.save(state, tmp_path / "resume.pt")
    assert again._progress.resume() == 3
    assert again._history == []
