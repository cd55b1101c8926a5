"""Curves over epochs from training runs: what is averaged, what is left out, what the image shows."""

import pytest
from PIL import Image

from dassl.report.figures.all import all_figures
from dassl.report.figures.epochs import epoch_curves
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import read_csv, write_run


def history(start, epochs=4, **more):
    """A falling loss and a rising accuracy."""
    return [{"epoch": k + 1, "loss": start / (k + 1), "acc": 10.0 * k + start, **more} for k in range(epochs)]


def train(root, name, trainer="CoOp", **fields):
    write_run(root / name, trainer, kind="train", **fields)


def numbers(root):
    """{(method, data set, quantity, epoch): (mean, std, n)} of the only figure."""
    _, table = all_figures([root], load_results(root), root / "figures", METHODS, ["epochs"])
    return {
        (r["method"], r["dataset"], r["quantity"], int(r["epoch"])): (r["mean"], r["std"], r["n"])
        for r in read_csv(table)
    }


def test_means_over_data_sets_and_deviations_over_seeds(tmp_path):
    for seed, start in ((1, 8.0), (2, 4.0)):
        train(tmp_path, f"a{seed}", seed=seed, history=history(start))
        train(tmp_path, f"b{seed}", seed=seed, dataset="toy_b", history=history(start + 2))
    found = numbers(tmp_path)
    assert len(found) == 3 * 2 * 4
    assert found["CoOp", "toy_a", "loss", 2] == ("3.000000", "1.000000", "2")
    assert found["CoOp", "average", "loss", 1] == ("7.000000", "2.000000", "2")
    assert found["CoOp", "average", "acc", 4] == ("37.000000", "2.000000", "2")


def test_one_figure_for_a_stage_1_method_and_what_continues_it(tmp_path):
    train(tmp_path, "a", history=history(4))
    train(tmp_path, "b", "CoOp_LMC", preset="paper", history=history(5, 2))
    train(tmp_path, "c", "KgCoOp", history=history(6))
    train(tmp_path, "d", protocol="cross", subset="all", history=history(6))
    found = epoch_curves(load_results(tmp_path), METHODS)
    assert {(one.protocol, one.family, len(one.rows)) for one in found} == {
        ("base2new", "CoOp", 2), ("base2new", "KgCoOp", 1), ("cross", "CoOp", 1),
    }  # fmt: skip
    images = all_figures([tmp_path], load_results(tmp_path), tmp_path, METHODS, ["epochs"])[::2]
    assert {p.name for p in images} == {
        "epochs_base2new_CoOp.png", "epochs_base2new_KgCoOp.png", "epochs_cross_CoOp.png",
    }  # fmt: skip


def test_validation_makes_a_third_panel(tmp_path):
    train(tmp_path / "two", "a", history=history(4))
    train(tmp_path / "three", "a", history=history(4, val_accuracy=60.0))
    widths = {}
    for name in ("two", "three"):
        file, _ = all_figures([], load_results(tmp_path / name), tmp_path / name, METHODS, ["epochs"])
        with Image.open(file) as image:
            widths[name] = image.width
    assert widths["three"] - widths["two"] == 600  # 4 inches
    assert numbers(tmp_path / "three")["CoOp", "average", "val_accuracy", 3] == ("60.000000", "", "1")


def test_runs_of_a_sweep_are_lines_of_their_own(tmp_path):
    for tau in (0.0, 0.5):
        preset = "paper, changed: TRAINER.LMC.TAU" if tau else "paper"
        lmc = {"TAU": tau, "BETA": 1.0}
        train(tmp_path, f"t{tau}", "CoOp_LMC", preset=preset, lmc=lmc, protocol="sweep", history=history(4))
    (found,) = epoch_curves(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == ["CoOp_LMC (paper), tau 0.0", "CoOp_LMC (paper), tau 0.5"]


def test_a_gap_is_a_gap_and_other_epochs_are_left_out(tmp_path, capsys):
    broken = history(4)
    broken[2]["loss"] = None
    for seed in (1, 2):
        train(tmp_path, f"a{seed}", seed=seed, history=broken)
    train(tmp_path, "b", seed=3, history=history(4)[2:])  # resumed from a folder without a record
    found = numbers(tmp_path)
    assert found["CoOp", "average", "loss", 3][:2] == ("", "")
    assert found["CoOp", "average", "loss", 4] == ("1.000000", "0.000000", "2")
    assert str(tmp_path / "b" / "results.json") in capsys.readouterr().out


def test_nothing_to_draw_is_one_error(tmp_path, capsys):
    train(tmp_path, "old")
    write_run(tmp_path / "eval", history=history(4))
    train(tmp_path, "damaged", history=[1, 2], seed=2)
    with pytest.raises(UserError, match="^No epochs figure: of 3 results, 2 are training runs and none"):
        epoch_curves(load_results(tmp_path), METHODS)
    assert "damaged" in capsys.readouterr().out
