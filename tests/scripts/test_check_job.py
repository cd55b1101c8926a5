"""`--check` of a job: a run of each data set tried out, nothing left, finished runs not counted."""

import os
import re
import sys

import pytest

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from scripts import main_job

SHIFTS = ("sketch", "noise", "dark", "rotation")
SMALL = ["--set", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"]


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """`check(*words)` -> (status, printed lines, errors) of the main job; its output folder stays as it was."""
    datasets.register_all()
    for name in DATASET_REGISTRY.registered_names():
        if name.startswith("Toy"):
            monkeypatch.setattr(DATASET_REGISTRY.get(name), "counts", (3, 1, 2))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    (tmp_path / "output").mkdir()

    def go(*words):
        monkeypatch.setattr(sys, "argv", ["main_job.py", *words, *SMALL, "--check"])
        before = sorted((tmp_path / "output").rglob("*"))
        status = main_job.main()
        assert sorted((tmp_path / "output").rglob("*")) == before
        assert os.environ["OUTPUT"] == str(tmp_path / "output")
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return go


def tried(lines):
    """The runs that were tried, and for each of them the beginnings of the lines on it."""
    runs = [text for text in lines if re.fullmatch(r"\w+ seed \d: \S+", text)]
    return runs, [re.findall(r"^(data|anchor|estimate|feature bank): ", text) for text in lines]


def test_a_run_of_each_data_set_is_tried_and_all_of_its_kind_are_counted(check):
    status, lines, _ = check("toy_shapes", "toy_digits", "1", "2")
    runs, begin = tried(lines)
    assert status == 0 and runs == [f"toy_{name} seed 1: coop/base2new_train" for name in ("shapes", "digits")]
    assert sum(begin, []) == [*(["data", "anchor", "estimate", "feature bank"] * 2), "estimate"]
    assert any("4 steps of" in text for text in lines)  # 8 classes x 2 images in batches of 4
    end = lines.index("0 of 88 runs are finished")
    assert re.match(r"estimate: .* in 2 at once", lines[end + 1])
    assert lines[end + 2].startswith("84 runs are of kinds of which none is finished or was tried")


def test_what_is_finished_is_counted_by_its_time_and_what_needs_it_may_be_tried(check, tmp_path):
    folder = tmp_path / "output" / "output_zsclip/evaluate/test_base/toy_digits/shots_2/ZeroshotCLIP/vit_b16/seed1"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"metrics": {}, "wall_s": 7200}')
    _, lines, _ = check("toy_digits", "1", "2")
    assert "1 of 44 runs are finished" in lines
    assert any(re.match(r"estimate: 2 h 00 min; about 1 h 00 min in 2 at once", text) for text in lines)


def test_of_a_data_set_that_is_only_tested_on_zero_shot_clip_is_tried(check):
    status, lines, _ = check("--protocol", "robust", "--trainer", "LinearProbe", "toy_objects", "1")
    runs, _ = tried(lines)
    assert status == 0 and runs[0] == "toy_objects seed 1: robust/linear_probe_train"
    assert set(runs[1:]) == {f"toy_objects_{name} seed 1: zsclip/robust_test" for name in SHIFTS}


def test_broken_images_are_a_problem_and_nothing_is_timed(check, tmp_path):
    check("toy_digits", "1")
    for image in (tmp_path / "data").rglob("*.png"):
        image.write_bytes(b"")
    status, lines, _ = check("toy_digits", "1")
    assert status == 1 and any(text.startswith("PROBLEM: ") for text in lines)
    assert not any(text.startswith("estimate: ") for text in lines)
