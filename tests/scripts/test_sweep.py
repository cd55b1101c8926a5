"""Sweeps: every yaml of the project, and one run from grid to table."""

from types import SimpleNamespace

import pytest

import train
from dassl.utils import UserError
from scripts.grid import chosen, label, plan, read_sweep
from scripts.grid import sweep_jobs as steps
from tests.conftest import ROOT
from tests.fixtures.interpreter import Python

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
SMALL = """
command: coop_LMC/base2new_train_coop
cfg: paper
datasets: {toy: [toy_digits]}
seeds: [1]
grid: {TRAINER.LMC.TAU: [0.3, 1.0]}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def config_of(step):
    return train.setup_cfg(train.build_parser().parse_intermixed_args(step.argv))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_cell_of_every_sweep_builds_its_config(path):
    sweep = read_sweep(path)
    runs = steps(sweep, "caltech101", 1, ())
    assert len({run.folder for run in runs}) == len(runs)
    trainings = [run for run in runs if run.command == sweep.command]
    assert len(trainings) == len(sweep.cells)
    for run, cell in zip(trainings, sweep.cells, strict=True):
        cfg = config_of(run)
        assert cfg.PRESET.split(",")[0] == "paper"
        for key, value in cell.items():
            if "." in key:
                node = cfg
                for part in key.split("."):
                    node = node[part]
                assert str(node) == value


def test_a_cell_with_the_recipes_own_values_is_the_recipe(small):
    runs = [run for run in steps(read_sweep(small), "toy_digits", 1, ()) if run.arguments.get("SWEEP")]
    assert {config_of(run).PRESET for run in runs} == {"paper", "paper, changed: TRAINER.LMC.TAU"}
    assert {config_of(run).TRAINER.MODAL for run in runs} == {"sweep"}


def test_cells_that_would_share_a_folder_are_refused(small):
    cells = "[{STAGE1_CFG: vit_b16_ep100_ctxv1}, {STAGE1_CFG: siglip2_b16_ep100_ctxv1}]"
    small.write_text(SMALL.replace("grid: {TRAINER.LMC.TAU: [0.3, 1.0]}", f"cells: {cells}"))
    args = SimpleNamespace(sweep=small, words=[], data="", set=[])
    assert len(plan(args)) == 1  # stage 1 is shared here, whatever its CFG
    small.write_text(small.read_text() + "whole: true\n")
    with pytest.raises(UserError, match="would be the folder of two runs: .*siglip2_b16_ep100_ctxv1"):
        plan(args)


def test_a_tests_model_is_its_own_cells(small):
    for run in steps(read_sweep(small), "toy_digits", 1, ()):
        argv = run.argv
        if "--model-dir" in argv and run.arguments.get("SWEEP"):
            assert f"/{run.arguments['SWEEP']}/" in argv[argv.index("--model-dir") + 1]
        if "--resume-coop" in argv:
            assert "/sweeps/" not in argv[argv.index("--resume-coop") + 1]


def test_keys_for_every_run_are_followed_by_folders_and_do_not_contradict_a_cell(small):
    for run in steps(read_sweep(small), "toy_digits", 1, ("DATASET.NUM_SHOTS", "8")):
        assert "shots_8" in str(run.folder) and config_of(run).DATASET.NUM_SHOTS == 8
    with pytest.raises(UserError, match="TRAINER.LMC.TAU: the cells of small.yaml differ in it"):
        steps(read_sweep(small), "toy_digits", 1, ("TRAINER.LMC.TAU", "0.1"))


def test_cells_have_readable_folders():
    assert label({"TRAINER.LMC.LAMBDA": "8.0", "TRAINER.LMC.BETA": "0.5"}) == "LAMBDA_8.0_BETA_0.5"
    assert label({"MODEL.BACKBONE.NAME": "ViT-L/14"}) == "NAME_ViT-L-14"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds", "seed", "seeds"),
        ("coop_LMC/base2new_train_coop", "coop/base2new_train", "coop_LMC/base2new_train_coop"),
        ("grid:", "cells: [{}]\ngrid:", "either grid or cells"),
        ("seeds: [1]", "seeds: 1", "list"),
        ("TRAINER.LMC.TAU", "DATASET.SUBSAMPLE_CLASSES", "the script"),
        ("toy_digits", "toy_digit", "small.yaml: a data set .*toy_digit"),
    ],
)
def test_a_wrong_yaml_is_refused_by_name(small, old, new, told):
    small.write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=told):
        chosen(read_sweep(small), SimpleNamespace(words=[], data=""))


def test_a_sweep_runs_to_its_table(small, toy_data, tmp_path, monkeypatch):
    pairs = ["OPTIM.MAX_EPOCH", "1", "FEATURES.VIEWS", "1", "TEST.OTHERS", "[toy_shapes]"]
    words = ["scripts/sweep.py", small, "--workers", "1", "--set", *pairs]
    process = Python(words, DATA=str(toy_data), OUTPUT=str(tmp_path / "out"))
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert "tau" in printed and (tmp_path / "out" / "tables" / "sweep.md").is_file()
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    runs = steps(read_sweep(small), "toy_digits", 1, pairs)
    assert len(runs) == 5 + 2 * 3 and all(run.finished for run in runs)
