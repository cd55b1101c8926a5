"""The base-to-new table: H by hand, both averages, deviations, gaps."""

import csv

import pytest

from dassl.report.frame import harmonic_mean, summarise_average
from dassl.report.protocols.base2new import base2new, base2new_report, base2new_table
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import only, read_csv, write_pairs, write_run


def test_harmonic_mean_by_hand():
    assert harmonic_mean(80, 60) == pytest.approx(9600 / 140)
    assert harmonic_mean(50, 50) == 50
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.005)


def test_one_data_set_averages_h_over_seeds_with_the_population_deviation(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (90, 30)]})
    found = base2new(load_results(tmp_path))
    cell = found.on(only(found), "toy_a")
    assert cell["base"][:3] == (85, 5, 2)
    assert cell["new"][:3] == (45, 15, 2)
    # H is 68.571... for seed 1 and 45 for seed 2
    assert cell["H"].mean == pytest.approx((480 / 7 + 45) / 2)
    assert cell["H"].std == pytest.approx((480 / 7 - 45) / 2)
    assert "85.00 ± 5.00" in base2new_report(load_results(tmp_path)).text()
    assert "56.79 ± 11.79" in base2new_report(load_results(tmp_path)).text()


def test_the_two_averages_of_h_differ_and_are_both_named(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(40, 90)]})
    found = base2new(load_results(tmp_path))
    average = found.average(only(found))
    assert (average["base"].mean, average["new"].mean) == (60, 75)
    assert average["H of averages"].mean == pytest.approx(9000 / 135)
    assert average["mean of H"].mean == pytest.approx((9600 / 140 + 7200 / 130) / 2)
    report = base2new_report(load_results(tmp_path))
    for text in (report.text(), report.markdown(), report.csv()):
        assert "H of averages" in text and "mean of H" in text
        assert "66.67" in text and "61.98" in text


def test_the_average_deviates_over_the_averages_of_single_seeds(tmp_path):
    # seed 1: base 70, new 50; seed 2: base 70, new 60. The base deviations of 10 cancel between the data sets
    write_pairs(tmp_path, {"toy_a": [(80, 50), (60, 60)], "toy_b": [(60, 50), (80, 60)]})
    found = base2new(load_results(tmp_path))
    average = found.average(only(found))
    assert average["base"][:3] == (70, 0, 2)
    assert average["new"][:3] == (55, 5, 2)
    first, second = 7000 / 120, 8400 / 130
    assert average["H of averages"].mean == pytest.approx(2 * 70 * 55 / 125)
    assert average["H of averages"].std == pytest.approx((second - first) / 2)


def test_a_single_seed_has_no_deviation(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    found = base2new(load_results(tmp_path))
    assert found.on(only(found), "toy_a")["base"][:3] == (80, None, 1)
    assert "±" not in base2new_report(load_results(tmp_path)).text().split("mean ±")[0]


def test_a_method_that_lacks_a_cell_shows_it_and_has_no_average(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(70, None)]}, trainer="CoOp")
    write_pairs(tmp_path, {"toy_a": [(50, 50)], "toy_b": [(50, 50)]}, trainer="ZeroshotCLIP")
    found = base2new(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == ["ZeroshotCLIP", "CoOp"]
    whole, broken = (found.average(row) for row in found.rows)
    assert whole["mean of H"].mean == 50
    assert broken["base"].mean == 75
    assert not any(broken[q] for q in ("new", "H of averages", "mean of H"))
    text = base2new_report(load_results(tmp_path)).text()
    assert "CoOp: not averaged where a data set is missing: toy_b (new)." in text
    line = next(line for line in text.split("toy_b")[1].splitlines() if line.startswith("CoOp"))
    assert line.split() == ["CoOp", "70.00", "\N{EM DASH}", "\N{EM DASH}", "1/0/0"]
    missing = [r for r in csv.DictReader(base2new_report(load_results(tmp_path)).csv().splitlines()) if not r["mean"]]
    assert {(r["method"], r["dataset"], r["quantity"], r["n"]) for r in missing} == {
        ("CoOp", "toy_b", "new", "0"), ("CoOp", "toy_b", "H", "0"), ("CoOp", "average", "new", "0"),
        ("CoOp", "average", "H of averages", "0"), ("CoOp", "average", "mean of H", "0"),
    }  # fmt: skip


def test_uneven_seeds_are_said_and_the_average_is_that_of_the_printed_means(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (60, 60)], "toy_b": [(50, 40), (None, None)]})
    found = base2new(load_results(tmp_path))
    assert found.average(only(found))["base"][:3] == (60, None, 1)
    assert "CoOp: data sets have different seeds" in base2new_report(load_results(tmp_path)).text()


def test_h_uses_the_seeds_that_have_both_halves(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (10, None)]})
    found = base2new(load_results(tmp_path))
    assert found.on(only(found), "toy_a")["H"].mean == pytest.approx(9600 / 140)
    assert "2/1/1" in base2new_report(load_results(tmp_path)).text()


def test_no_shared_seed_still_averages_the_means():
    summary = summarise_average({"toy_a": {1: 10.0}, "toy_b": {2: 30.0}})
    assert summary[:3] == (20, None, 0)
    assert not summarise_average({"toy_a": {1: 10.0}, "toy_b": {}})


def test_a_training_run_is_no_evaluation(tmp_path):
    write_run(tmp_path / "train", accuracy=99, kind="train", command="train.py")
    write_run(tmp_path / "new", subset="new", accuracy=40)
    found = base2new(load_results(tmp_path))
    assert not found.on(only(found), "toy_a")["base"]
    assert "toy_a (base; trained, not evaluated)" in base2new_report(load_results(tmp_path)).text()


def test_other_protocols_and_subsets_do_not_enter(tmp_path):
    write_run(tmp_path / "a", subset="all")
    write_run(tmp_path / "b", protocol="cross")
    records = load_results(tmp_path)
    assert len(records) == 2
    with pytest.raises(UserError, match="of 2 results, 0 follow"):
        base2new(records)


def test_shared_settings_stand_in_the_heading(tmp_path):
    write_run(tmp_path / "1", trainer="CoOp")
    write_run(tmp_path / "2", trainer="ZeroshotCLIP")
    assert "(tiny, 16 shots)" in base2new_report(load_results(tmp_path)).markdown().splitlines()[0]


def test_files_are_written_whole_with_two_decimals(tmp_path):
    write_pairs(tmp_path / "runs", {"toy_a": [(100 / 3, 200 / 3)]})
    markdown, table = base2new_report(load_results(tmp_path / "runs")).write(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["base2new.csv", "base2new.md"]
    assert "| CoOp | 33.33 | 66.67 | 44.44 | 1 |" in markdown.read_text(encoding="utf-8")
    rows = read_csv(table)
    assert [r["mean"] for r in rows if r["dataset"] == "toy_a"] == ["33.33", "66.67", "44.44"]
    assert rows[0] | {"mean": "", "std": ""} == {
        "method": "CoOp", "trainer": "CoOp", "preset": "", "backbone": "tiny", "shots": "16",
        "dataset": "average", "quantity": "base", "mean": "", "std": "", "n": "1",
        "stamp_data_seen": "", "stamp_chosen_on": "", "stamp_alpha_chosen_on": "", "stamp_templates": "",
    }  # fmt: skip


def test_text_columns_line_up(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (70, 50)]}, trainer="ZeroshotCLIP")
    write_pairs(tmp_path, {"toy_a": [(80, None)]}, trainer="CoOp")
    lines = base2new_report(load_results(tmp_path), METHODS).text().splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("method"))
    start = lines[head].index("base")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines[head + 2 : head + 4])


def zero_shot_run(root, dataset, accuracy, template, *families, seed=1):
    for subset in ("base", "new"):
        facts = {"templates": template, "template_family": [*families], "data_seen": "none"}
        folder = root / f"{dataset}-{families[0][:4]}-{subset}-{seed}"
        write_run(folder, "ZeroshotCLIP", dataset, subset, seed, accuracy, **facts)


def test_zero_shot_clip_with_another_template_is_a_row_of_its_own(tmp_path):
    zero_shot_run(tmp_path, "toy_a", 60, "a photo of a {}.", "coop", "a photo of a {}.")
    zero_shot_run(tmp_path, "toy_a", 50, "a shape in {}.", "dataset", "a shape in {}.")
    zero_shot_run(tmp_path, "toy_b", 40, "a photo of a {}.", "coop", "dataset", "a photo of a {}.")
    found = base2new(load_results(tmp_path), METHODS)
    usual, other = found.rows
    assert [row.label for row in found.rows] == ["ZeroshotCLIP", "ZeroshotCLIP (each data set's own template)"]
    # the second set has one template for both, so its run serves both rows
    assert found.average(usual)["base"].mean == 50 and found.average(other)["base"].mean == 45
    assert [base2new_table(found, "toy_a").rows[1][0], base2new_table(found, "toy_b").rows[1][0]] == [
        "ZeroshotCLIP (a shape in {}.)",
        "ZeroshotCLIP (a photo of a {}.)",
    ]


def test_zero_shot_runs_that_differ_in_no_template_are_one_row(tmp_path):
    zero_shot_run(tmp_path, "toy_a", 60, "a photo of a {}.", "dataset", "coop", "a photo of a {}.")
    zero_shot_run(tmp_path, "toy_b", 40, "a photo of a {}.", "coop", "dataset", "a photo of a {}.")
    assert only(base2new(load_results(tmp_path), METHODS)).label == "ZeroshotCLIP"


def test_the_template_names_the_row_where_it_is_one(tmp_path):
    zero_shot_run(tmp_path, "toy_a", 60, "{} texture.", "coop", "{} texture.")
    zero_shot_run(tmp_path, "toy_a", 50, "a photo of a {}.", "a photo of a {}.")
    table = base2new_table(base2new(load_results(tmp_path), METHODS))
    assert [row[:2] for row in table.rows] == [["ZeroshotCLIP", "60.00"], ["ZeroshotCLIP (a photo of a {}.)", "50.00"]]
    assert "below" not in " ".join(table.notes)  # zero-shot CLIP is no method that falls below it
    assert table.rows[1][1] == "50.00"
