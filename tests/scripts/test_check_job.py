"""`--check` of a job: every kind of run tried out on one cell, nothing left, finished runs not counted."""

import os
import re
import sys

import pytest

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from scripts import main_job

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


def rows(lines):
    """{kind of run: (runs, steps)} of the table."""
    found = (re.match(r"(\S+/\S+ \S+)(?: \d+ shots)? +(\d+) +([\d,]+|-) +[\d.]+ ", text) for text in lines)
    return {row[1]: (int(row[2]), row[3]) for row in found if row}


def test_both_stages_are_tried_out_and_counted_for_every_cell(check):
    status, lines, _ = check("toy_shapes", "toy_digits", "1", "2")
    found = rows(lines)
    assert status == 0
    assert found["coop/base2new_train vit_b16_ep100_ctxv1"] == (4, "4")  # 8 classes x 2 images in batches of 4
    assert found["coop_LMC/base2new_train_coop paper"] == (4, "4")
    assert found["zsclip/base2new_test vit_b16"] == (4, "-")
    assert (
        sum(text.startswith("data: Toy") for text in lines) == sum(text.startswith("anchor: ") for text in lines) == 2
    )
    names = ", ".join(sorted({"ToyColours", "ToyCounts", "ToyDigits", "ToyLetters", "ToyObjects", "ToyPairs"}))
    assert any(re.match(rf"others: .* test images of {names}, ", text) for text in lines)
    assert any(re.match(r"estimate: 80 runs, .* in 2 processes; peak memory", text) for text in lines)


def test_a_finished_run_is_not_counted(check, tmp_path):
    folder = tmp_path / "output" / "output_zsclip/evaluate/test_base/toy_digits/shots_2/ZeroshotCLIP/vit_b16/seed1"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"metrics": {}}')
    _, lines, _ = check("toy_digits", "1")
    assert "zsclip/base2base_test vit_b16" not in rows(lines)
    assert any(text.startswith("1 are finished") for text in lines)


def test_robust_fine_tuning_is_tried_out(check):
    status, lines, _ = check("--protocol", "robust", "--trainer", "LinearProbe", "toy_objects", "1")
    assert status == 0 and any(name.startswith("robust/linear_probe_LMC_test") for name in rows(lines))


def test_broken_images_are_a_problem_and_nothing_is_tried_out(check, tmp_path):
    check("toy_digits", "1")
    for image in (tmp_path / "data").rglob("*.png"):
        image.write_bytes(b"")
    status, lines, _ = check("toy_digits", "1")
    assert status == 1 and any(text.startswith("PROBLEM: ") for text in lines) and not rows(lines)
