"""Sweeps and backbones: which runs vary together, the matrix, costs relative to stage 1, gains, by hand."""

import pytest

from dassl.report.frame import harmonic_mean
from dassl.report.protocols.base2new import backbones_report
from dassl.report.protocols.sweeps import sweeps, sweeps_report
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import line_of, write_pairs, write_run

PAPER = {"SPACE": "features", "LAMBDA": 8.0, "BETA": 0.5, "TAU": 0.3, "NUM_SAMPLES": 5}


def write_setting(root, base, new, protocol="sweep", wall_s=None, max_epoch=50, **changed):
    """Evaluations of a run at the paper's settings but for `changed`, and its training run if it was timed."""
    keys = [*changed, *(["MAX_EPOCH"] if max_epoch != 50 else [])]
    preset = "paper" + (f", changed: {', '.join(keys)}" if keys else "")
    fields = {"trainer": "KgCoOp_LMC", "preset": preset, "protocol": protocol, "lmc": PAPER | changed}
    fields |= {"max_epoch": max_epoch, "epochs": max_epoch}
    folder = root / f"{protocol}-{changed}-{max_epoch}"
    for subset, accuracy in (("base", base), ("new", new)):
        write_run(folder / subset, subset=subset, accuracy=accuracy, **fields)
    if wall_s:
        write_run(folder / "train", kind="train", wall_s=wall_s, **fields)


def titles(folder):
    return [table.title.split(" (average")[0] for table in sweeps_report(load_results(folder), METHODS).tables]


def test_two_keys_make_a_matrix_and_one_a_list(tmp_path):
    write_setting(tmp_path, 80, 60)
    for lam in (1.0, 16.0):
        for beta in (0.1, 0.5):
            write_setting(tmp_path, 70 + lam, 60, LAMBDA=lam, BETA=beta)
    write_setting(tmp_path, 50, 50, TAU=0.0)
    write_setting(tmp_path, 90, 50, TAU=1.0)
    report = sweeps_report(load_results(tmp_path), METHODS)
    assert titles(tmp_path) == ["KgCoOp_LMC (paper): tau", "KgCoOp_LMC (paper): H of averages by lambda and beta"]
    tau, matrix = report.tables
    assert [line[:4] for line in tau.rows] == [
        ["0", "50.00", "50.00", "50.00"], ["0.3", "80.00", "60.00", "68.57"], ["1", "90.00", "50.00", "64.29"],
    ]  # fmt: skip
    assert matrix.columns == ["lambda", "beta 0.1", "beta 0.5"]
    h1, h16 = (f"{harmonic_mean(70 + lam, 60):.2f}" for lam in (1, 16))
    assert matrix.rows == [["1", h1, h1], ["8", "—", "68.57"], ["16", h16, h16]]
    assert [note for note in matrix.notes if note.startswith("n: ")] == matrix.notes


def test_the_last_epoch_in_place_of_the_chosen_one_is_no_setting_of_the_same_sweep(tmp_path):
    for tau in (0.3, 1.0):
        for k, chosen in enumerate(({}, {"instead_of": "best_val"}, {"instead_of": "best_val"})):
            epochs = {"epochs": 20 * k} | ({"chosen_on": "epoch 20"} if k == 1 else {"chosen_on": "last_step"})
            for subset in ("base", "new"):
                fields = {"preset": "released", "lmc": PAPER | {"TAU": tau}, "max_epoch": 50, **epochs, **chosen}
                folder = tmp_path / f"{tau}{k}{subset}"
                write_run(folder, "KgCoOp_LMC", subset=subset, accuracy=60 + 10 * k + tau, **fields)
    found = sweeps(load_results(tmp_path), METHODS)
    names = {sweep.name: sweep for sweep in found}
    assert set(names) == {"KgCoOp_LMC (released)", "KgCoOp_LMC (released, last epoch)"}
    own, last = names.values()
    assert own.keys == ("TAU", "epochs") and last.keys == ("TAU",)  # the epoch that a line named by number is a setting
    assert [own.grid.average(row)["base"].mean for row in own.rows] == [70.3, 60.3, 71.0, 61.0]
    assert [last.grid.average(row)["base"].mean for row in last.rows] == [80.3, 81.0]


def test_the_cost_is_that_of_training_relative_to_stage_1(tmp_path):
    write_run(tmp_path / "stage1", "KgCoOp", kind="train", wall_s=20.0, epochs=100)
    write_setting(tmp_path, 80, 60, wall_s=30.0)
    write_setting(tmp_path, 80, 62, wall_s=70.0, NUM_SAMPLES=15)
    write_setting(tmp_path, 80, 61, NUM_SAMPLES=10)
    (table,) = sweeps_report(load_results(tmp_path), METHODS).tables
    assert table.columns[0] == "N" and table.columns[5:8] == ["train s", "× stage 1", "× stage 1 an epoch"]
    # 30 s for 50 epochs is 0.6 s each, stage 1 takes 0.2 s
    assert [line[5:8] for line in table.rows] == [["30.0", "1.50", "3.00"], ["—"] * 3, ["70.0", "3.50", "7.00"]]


def test_epochs_are_those_asked_for_not_those_that_validation_chose(tmp_path):
    for epochs in (10, 50, 100):
        write_setting(tmp_path, 80, 60, max_epoch=epochs)
    (sweep,) = sweeps(load_results(tmp_path), METHODS)
    assert sweep.keys == ("epochs",) and [dict(row.setting)["epochs"] for row in sweep.rows] == [10, 50, 100]


def test_base_to_new_runs_fill_the_presets_own_place(tmp_path):
    write_setting(tmp_path, 80, 60, protocol="base2new")
    write_setting(tmp_path, 70, 60, TAU=1.0)
    write_run(tmp_path / "other", "KgCoOp_LMC", "toy_b", preset="paper", lmc=PAPER, max_epoch=50)
    (sweep,) = sweeps(load_results(tmp_path), METHODS)
    assert sweep.grid.datasets == ["toy_a"]  # the sweep's own
    assert [sweep.grid.average(row)["base"].mean for row in sweep.rows] == [80, 70]


def test_a_missing_data_set_and_the_runs_behind_a_line_are_known(tmp_path):
    for tau, datasets in ((0.3, ("toy_a", "toy_b")), (1.0, ("toy_a",))):
        for dataset in datasets:
            for subset in ("base", "new"):
                fields = {"preset": "paper", "lmc": PAPER | {"TAU": tau}, "protocol": "sweep", "subset": subset}
                write_run(tmp_path / f"{tau}{dataset}{subset}", "KgCoOp_LMC", dataset, **fields)
    (table,) = sweeps_report(load_results(tmp_path), METHODS).tables
    assert table.notes == ["tau 1: not averaged where a data set is missing: toy_b (base and new)."]
    assert [len(table.rows[0][k].files) for k in (1, 3)] == [2, 4]


def test_a_run_that_does_not_say_a_setting_shows_a_dash(tmp_path):
    for k, lmc in enumerate((PAPER, PAPER | {"TAU": 1.0}, {key: PAPER[key] for key in PAPER if key != "TAU"})):
        write_run(tmp_path / str(k), "KgCoOp_LMC", preset=f"paper, changed: {k}", lmc=lmc, protocol="sweep")
    (table,) = sweeps_report(load_results(tmp_path), METHODS).tables
    assert sorted(line[0] for line in table.rows) == ["0.3", "1", "—"]


def test_presets_side_by_side_are_no_sweep(tmp_path):
    write_setting(tmp_path, 80, 60, protocol="base2new")
    write_run(tmp_path / "r", "KgCoOp_LMC", preset="released", lmc=PAPER | {"TAU": 1.0})
    with pytest.raises(UserError, match="no method was evaluated with more than one"):
        sweeps(load_results(tmp_path), METHODS)


def test_the_sweeps_csv_has_each_setting(tmp_path):
    write_setting(tmp_path, 80, 60, wall_s=3.0)
    write_setting(tmp_path, 70, 60, TAU=1.0)
    report = sweeps_report(load_results(tmp_path), METHODS)
    assert report.columns[5:] == ["TAU", "quantity", "mean", "std", "n", "train_s", "x_stage1", "x_stage1_epoch"]
    assert [line[5:8] for line in report.lines if line[6] == "base"] == [
        ["0.3", "base", "80.00"],
        ["1", "base", "70.00"],
    ]
    assert report.lines[0][-3:] == ["3.0", "", ""]


def test_backbones_are_compared_with_their_own_stage_1(tmp_path):
    for name, gained in (("ViT-B/16", 4), ("ViT-L/14", 0)):
        fields = {"backbone": {"name": name}}
        folder = tmp_path / name.replace("/", "")
        write_pairs(folder / "1", {"a": [(80, 60), (80, 60)]}, trainer="CoOp", **fields)
        lmc = {"trainer": "CoOp_LMC", "preset": "paper", **fields}
        write_pairs(folder / "2", {"a": [(80, 60 + gained), (80, 60)]}, **lmc)
    text = backbones_report(load_results(tmp_path), METHODS).text()
    by_hand = (harmonic_mean(80, 62) - harmonic_mean(80, 60), (harmonic_mean(80, 64) - harmonic_mean(80, 60)) / 2)
    small = line_of(text, "CoOp_LMC (paper)")
    assert small[:4] == ["CoOp_LMC (paper)", "ViT-B/16", "1", "80.00 ± 0.00"]
    assert small[7:] == [f"+{by_hand[0]:.2f} ± {by_hand[1]:.2f}", "2"]
    assert "+0.00 ± 0.00" in text


def test_one_backbone_makes_no_table(tmp_path):
    write_run(tmp_path)
    with pytest.raises(UserError, match="on 1 backbones"):
        backbones_report(load_results(tmp_path), METHODS)
