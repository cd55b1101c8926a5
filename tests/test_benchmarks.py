"""The benchmark runs, its versions agree, and our steps do no more tower passes than they need. No timing."""

import json
import sys

import pytest

from tests.benchmarks import step
from tests.benchmarks.variants import PASSES, count_passes, evaluation, training
from tests.benchmarks.world import World

SMALL = "--model small --batch 4 --classes 3 --test-batch 6 --steps 1 --threads 1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("bench"), "small", batch=4, classes=3, test_batch=6).write()


def test_benchmark_runs_and_its_versions_agree(clone, tmp_path):
    out = tmp_path / "results" / "step.json"
    done = clone(sys.executable, "tests/benchmarks/step.py", *SMALL.split(), "--out", out)
    found = json.loads(out.read_text())
    measured = {(task, v): row for task, versions in found["tasks"].items() for v, row in versions.items()}
    passes = {key: tuple(row["passes"]) for key, row in measured.items()}
    assert passes == PASSES
    assert passes["CoOp_LMC", "plain"] == (6, 3, 2)
    assert found["faults"] == []
    assert {(row["task"], row["version"]) for row in found["comparisons"]} == {
        key for key in PASSES if key[1] != "plain"
    }
    for row in found["comparisons"]:
        expected = {"logits"} if row["task"] == "evaluation" else {"loss", "gradient"}
        assert row["differences"].keys() == expected
        assert max(row["differences"].values()) <= 1e-5
        assert row["expected"] is row["met"] is None  # the expectations are about the full setting
    for row in measured.values():
        assert 0 < row["matrix_share"] < 1
        assert row["peak_mb"] > 0
    assert "CoOp_LMC bank" in done.stdout


@pytest.mark.parametrize(("version", "image"), [("pixels", 1), ("bank", 0)])
def test_a_step_of_stage_2_encodes_images_once_or_never_and_texts_once(world, version, image):
    runner = training(world, "CoOp_LMC", version)
    for _ in range(2):
        with count_passes(runner.module) as seen:
            runner.call()
        assert (seen["image"], seen["text"], seen["text with gradient"]) == (image, 1, 1)


def test_an_evaluation_on_stored_features_encodes_texts_once(world):
    runner = evaluation(world, "bank")
    assert runner.images >= 2000
    with count_passes(runner.module) as seen:
        runner.call()
    assert (seen["image"], seen["text"]) == (0, 1)


def rows(apart, index=(0, 1)):
    """Measured rows of a task whose bank version is 50 times faster, its gradient `apart` from plain's."""
    values = {"index": [0, 1], "loss": [2.0], "gradient": [3.0, 4.0]}
    ours = {"index": list(index), "loss": [2.0], "gradient": [3.0, 4.0 * (1 + apart)]}
    return {
        "plain": {"wall_s": 5.0, "cpu_s": 10.0, "values": values},
        "bank": {"wall_s": 0.1, "cpu_s": 0.1, "values": ours},
    }


def test_expectations_stand_beside_the_ratios():
    fine = step.compare("CoOp", "bank", rows(1e-6), full=True)
    assert (fine["ratio"], fine["expected"], fine["met"], fine["faults"]) == (pytest.approx(50), 25, True, [])
    assert step.compare("CoOp_LMC", "bank", rows(0), full=True)["met"] is False
    assert step.compare("CoOp", "bank", rows(0), full=False)["met"] is None


def test_versions_that_disagree_fail_the_benchmark():
    assert "gradient differs" in step.compare("CoOp", "bank", rows(1e-4), full=False)["faults"][0]
    assert "gradient differs" in step.compare("CoOp", "bank", rows(float("nan")), full=False)["faults"][0]
    assert "images" in step.compare("CoOp", "bank", rows(0, index=(1, 0)), full=False)["faults"][0]
    counted = {"CoOp": {"plain": {"passes": (2, 1, 1), "expected_passes": (1, 1, 1)}}}
    assert "expected (1, 1, 1)" in step.wrong_passes(counted)[0]
