"""Run folders that an earlier version left: a finished one is read by all that read runs, an interrupted one goes on.

tests/fixtures/earlier_runs was made by the commit be4654b, of the command that `coop_runs` gives for CoOp, whose run
`interrupted` was broken off after 2 of 3 epochs; logs are left out, folders are relative.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from mergetune import merge
from mergetune.predict import Predictor
from mergetune.report import METHODS
from tests.conftest import ROOT
from tests.fixtures import coop_runs
from tests.fixtures.coop_runs import context, results

run, shared = coop_runs.run, coop_runs.shared  # fixtures

EARLIER = ROOT / "tests" / "fixtures" / "earlier_runs"


@pytest.fixture
def earlier(run):
    """Gives a copy of one of the folders."""
    return lambda name: shutil.copytree(EARLIER / name, run.folder / name)


@pytest.mark.parametrize("subset", ["base", "new"])
def test_a_finished_run_is_evaluated(run, earlier, subset):
    folder = earlier("finished")
    test = run("CoOp", "test", "--eval-only", "--model-dir", folder, DATASET__SUBSAMPLE_CLASSES=subset)
    found, trained = results(test), results(folder)
    for name in ("shots", "seed", "max_epoch", "epochs", "data_seen", "source_subset", "templates", "backbone"):
        assert found[name] == trained[name]
    assert METHODS.label("CoOp", found["preset"]) == "CoOp"  # that version marked no recipe without a preset
    assert found["total"] == 12


def test_a_finished_run_predicts_merges_and_serves_as_stage_1(run, earlier):
    folder = earlier("finished")
    images = sorted((run.data / "oxford_pets" / "images").glob("abyssinian_*.png"))[:3]
    assert [len(ranked) for ranked in Predictor(folder)(images)] == [3, 3, 3]
    out = merge.merge_run("ties", [folder], run.folder / "ties", root=str(run.data))
    assert merge.evaluate(out, "new", root=str(run.data))["total"] == 12
    stage2 = run("CoOp_LMC", "stage2", "--resume-coop", folder, epochs=1)
    assert results(stage2)["epochs"] == 1


def test_an_interrupted_run_goes_on(run, earlier):
    folder = earlier("interrupted")
    before = torch.load(folder / "resume.pt", weights_only=True)
    assert before["epoch"] == 2
    run("CoOp", "interrupted")
    found = results(folder)
    assert (found["epochs"], found["history"][:2]) == (3, before["history"])
    assert found["wall_s"] > before["seconds"] and not (folder / "resume.pt").exists()
    assert not torch.equal(context(folder), before["models"]["prompt_learner"]["model"]["ctx"])


def test_another_run_goes_on_from_an_interrupted_one(run, earlier):
    folder = run("CoOp", "more", "--resume", earlier("interrupted"), epochs=5, OPTIM__LR=0.001)
    found = results(folder)
    assert found["epochs"] == 5 and [entry["epoch"] for entry in found["history"]] == [1, 2, 3, 4, 5]
    again = run("CoOp", "again", "--resume", earlier("finished"), epochs=3)
    assert torch.equal(context(again), context(EARLIER / "finished"))
    assert json.loads((again / "results.json").read_text())["epochs"] == 3


def test_the_trainers_of_that_versions_page_run_and_say_what_their_names_are_now(tmp_path, toy_data):
    """tests/fixtures/earlier_trainer_page.md: docs/trainer.md before modules, classes and methods were renamed."""
    blocks = re.findall(r"```python\n(.*?)```", EARLIER.with_name("earlier_trainer_page.md").read_text(), re.DOTALL)
    path = 'import sys; sys.path[:0] = [".", "Dassl.ProGrad.pytorch"]'
    script = "\n".join([path, *blocks, "import train", "train.main(sys.argv[1:])"])
    line = f"--trainer Tip --root {toy_data} --seed 1 --output-dir {tmp_path} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"
    line += " --dataset-config-file configs/datasets/toy_shapes.yaml"
    line += " --config-file configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml"
    done = subprocess.run([sys.executable, "-c", script, *line.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for old, new in (
        ("mergetune.frozen", "mergetune.clip_trainer"),
        ("mergetune.clip_trainer.FrozenClipTrainer", "ClipTrainer"),
        ("mergetune.continued", "mergetune.stage2"),
        ("mergetune.stage2.Continued", "MergeTune"),
    ):
        assert f"FutureWarning: {old} is now {new}\n" in done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["trainer"] == "Tip"
