"""The benchmark runs, its versions agree, and our steps do no more tower passes than they need. No timing."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import classes, step
from tests.benchmarks.task import Task, Version, all_tasks, count_passes
from tests.benchmarks.world import World
from tests.conftest import ROOT
from tests.fixtures.interpreter import Python

TASKS = all_tasks()
SMALL = "--model small --batch 4 --classes 3 --test-batch 6 --steps 1 --threads 1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("bench"), "small", batch=4, classes=3, test_batch=6).write()


def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "results" / "step.json"
    words = [sys.executable, "tests/benchmarks/step.py", *SMALL.split(), "--tasks", "CoOp_LMC", "--out", out]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)  # pools: not in a forked process
    said = process.stdout
    assert process.returncode == 0, said + process.stderr
    found = json.loads(out.read_text())
    assert found["faults"] == []
    assert found["tasks"]["CoOp_LMC"]["plain"]["passes"] == {"image": [6, 0], "text": [3, 2]}
    assert {row["version"] for row in found["comparisons"]} == TASKS["CoOp_LMC"].versions.keys() - {"plain"}
    for row in found["comparisons"]:
        assert set(row["met"].values()) == {None}  # the expectations are about the full setting
    for row in found["tasks"]["CoOp_LMC"].values():
        assert 0 < row["matrix_share"] < 1
        assert row["peak_mb"] > 0
    assert "CoOp_LMC bank" in said


@pytest.mark.parametrize("name", TASKS)
def test_versions_agree_and_do_the_passes_they_stand_for(world, name):
    task, found = TASKS[name], {}
    assert name != "MMA_LMC" or task.versions["plain"].passes == {"image": (6, 6), "text": (2, 2)}
    for version, own in task.versions.items():
        runner = task.open(world, version)
        with count_passes(runner.towers) as passes:
            values = runner.result()
        assert {tower: tuple(seen) for tower, seen in passes.items()} == own.passes
        found[version] = {"wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 1.0, "values": values}
    for version in list(found)[1:]:
        row = step.compare(name, version, found, task, full=False)
        assert row["faults"] == [] and max(row["differences"].values()) <= 1e-5
        assert row["differences"].keys() == ({"logits"} if name == "evaluation" else {"loss", "gradient"})


def test_an_unknown_task_is_refused_by_name(tmp_path):
    process = Python(["tests/benchmarks/step.py", "--tasks", "MMA_LNC", "--out", tmp_path / "step.json"])
    said = process.communicate()[1]
    assert process.returncode and "MMA_LNC" in said and "MMA_LMC" in said


@pytest.mark.parametrize(
    ("task", "version", "image"),
    [("CoOp_LMC", "pixels", (1, 0)), ("CoOp_LMC", "bank", (0, 0)), ("MMA_LMC", "pixels", (1, 1))],
)
def test_a_step_of_stage_2_encodes_images_once_or_never_and_texts_once(world, task, version, image):
    runner = TASKS[task].open(world, version)
    for _ in range(2):
        with count_passes(runner.towers) as passes:
            runner.call()
        assert {name: tuple(seen) for name, seen in passes.items()} == {"image": image, "text": (1, 1)}


def test_an_evaluation_on_stored_features_encodes_texts_once(world):
    runner = TASKS["evaluation"].open(world, "bank")
    assert runner.images >= 2000
    with count_passes(runner.towers) as passes:
        runner.call()
    assert passes == {"image": [0, 0], "text": [1, 0]}


TASK = Task(None, {"plain": Version({}), "bank": Version({}, faster=25, smaller=3)}, batch=4)


def rows(apart, index=(0, 1), slower=1):
    """Measured rows of a task whose bank version is 50 times faster, its gradient `apart` from plain's."""
    values = {"index": [0, 1], "loss": [2.0], "gradient": [3.0, 4.0]}
    ours = {"index": list(index), "loss": [2.0], "gradient": [3.0, 4.0 * (1 + apart)]}
    return {
        "plain": {"wall_s": 5.0, "cpu_s": 10.0, "peak_mb": 200.0, "values": values},
        "bank": {"wall_s": 0.1 * slower, "cpu_s": 0.1, "peak_mb": 100.0, "values": ours},
    }


def test_expectations_stand_beside_the_ratios():
    fine = step.compare("CoOp", "bank", rows(1e-6), TASK, full=True)
    assert fine["faster"] == pytest.approx(50) and fine["smaller"] == 2 and fine["faults"] == []
    assert fine["expected"] == {"faster": 25, "smaller": 3}
    assert fine["met"] == {"faster": True, "smaller": False}
    assert step.compare("CoOp", "bank", rows(0, slower=3), TASK, full=True)["met"]["faster"] is False
    assert step.compare("CoOp", "bank", rows(0), TASK, full=False)["met"] == {"faster": None, "smaller": None}


def test_versions_that_disagree_fail_the_benchmark():
    for apart in (1e-4, float("nan")):
        assert "gradient differs" in step.compare("CoOp", "bank", rows(apart), TASK, full=False)["faults"][0]
    assert "images" in step.compare("CoOp", "bank", rows(0, index=(1, 0)), TASK, full=False)["faults"][0]
    counted = {"CoOp": {"plain": {"passes": {"image": [2, 0]}, "expected_passes": {"image": [1, 0]}}}}
    assert "passes are image 2/0, expected image 1/0" in step.wrong_passes(counted)[0]


def measured(count, context, **others):
    """A setting of the classes' benchmark whose shared prefix takes half the time and a quarter of the memory."""
    rows = {"whole": 8.0, "shared prefix": 2.0} | others
    rows = {name: {"tokens": 8, "wall_s": 4 + size / 2, "step_mb": size} for name, size in rows.items()}
    return {"classes": count, "context": context, "versions": rows, "left_out": []}


@pytest.mark.parametrize(
    ("count", "context", "model", "least", "met", "chunks"),
    [(20, 4, "text_b16", [1, None], [True, None], None), (100, 4, "text_b16", [None, None], [None, None], None),
     (500, 4, "text_b16", [2.2, 2], [False, True], 5), (1000, 16, "text_b16", [3, 3], [False, True], 5),
     (1000, 16, "small", [None, None], [None, None], None)],
)  # fmt: skip
def test_what_a_shared_prefix_is_expected_to_save(count, context, model, least, met, chunks):
    rows = classes.rows_of(measured(count, context, chunks=1.0), model)
    assert [row.name for row in rows[::3]] == [f"{count:,} classes x {context}{v}: tokens" for v in ("", ", chunks")]
    assert [row.least for row in rows] == [None, *least, None, None, chunks]
    assert [row.met for row in rows[1:3]] == met and [row.ratio for row in rows[2::3]] == [4, 8]


def test_what_does_not_fit_in_memory_is_left_out_with_a_line(tmp_path, capsys):
    args = classes.parse(["--model", "small", "--classes", "6", "12", "--contexts", "4"])
    smaller = {v: {"before_mb": 500, "step_mb": 1e9, "classes": 3} for v in list(classes.VERSIONS)[:2]}
    setting = {"classes": 6, "context": 4, "versions": {}, "left_out": []}
    classes.measure(setting, smaller, tmp_path, args)
    assert setting["versions"] == {} and classes.compare(setting) == classes.rows_of(setting, "text_b16") == []
    classes.print_setting(setting, "text_b16")
    whole, shared = capsys.readouterr().out.splitlines()
    assert "6 classes x 4, whole: left out, about 2,000,000,500 MB" in whole and "shared prefix: left out" in shared
