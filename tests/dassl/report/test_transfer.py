"""Tables of runs trained on one data set and evaluated on others, and of few-shot curves, by hand."""

import pytest

from dassl.report.protocols.fewshot import fewshot, fewshot_report
from dassl.report.protocols.transfer import transfer, transfer_report
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import line_of, write_run


def write_transfer(root, trainer, accuracies, protocol="cross", seed=1, **fields):
    """Evaluations of a model trained on Source. accuracies: {data set: accuracy}."""
    fields = {"source": "Source", **fields}
    for dataset, accuracy in accuracies.items():
        folder = root / f"{protocol}-{trainer}-{fields.get('preset', '')}-{dataset}-{seed}"
        write_run(folder, trainer, dataset, "all", seed, accuracy, protocol=protocol, **fields)


def zero_shot(root, accuracies, protocol="cross"):
    """Zero-shot evaluations: each names its own data set as the source, for there is none."""
    for dataset, accuracy in accuracies.items():
        folder = root / f"{protocol}-zero-{dataset}"
        fields = {"protocol": protocol, "source": dataset, "data_seen": "none"}
        write_run(folder, "ZeroshotCLIP", dataset, "all", 1, accuracy, **fields)


def test_cross_averages_the_targets_alone(tmp_path):
    write_transfer(tmp_path, "CoOp", {"Source": 90, "a": 60, "b": 20})
    write_transfer(tmp_path, "CoOp", {"Source": 92, "a": 62, "b": 30}, seed=2)
    (found,) = transfer(load_results(tmp_path), "cross", METHODS)
    (row,) = found.rows
    assert (found.source, found.columns, found.targets) == ("Source", ["Source", "a", "b"], ["a", "b"])
    # 40 for seed 1, 46 for seed 2; the source's 91 is no part of it
    assert found.cell(row, *found.targets)[:3] == (43, 3, 2)
    text = transfer_report(load_results(tmp_path), "cross", METHODS).text()
    assert line_of(text, "CoOp") == ["CoOp", "91.00 ± 1.00", "61.00 ± 1.00", "25.00 ± 5.00", "43.00 ± 3.00", "2"]
    assert "Trained on Source" in text and "Avg-C" in text


def test_below_zero_shot_is_marked_and_listed(tmp_path):
    write_transfer(tmp_path, "CoOp", {"Source": 90, "a": 60, "b": 20})
    write_transfer(tmp_path, "KgCoOp", {"Source": 90, "a": 60, "b": 40.001})
    zero_shot(tmp_path, {"Source": 80, "a": 50, "b": 40})
    text = transfer_report(load_results(tmp_path), "cross", METHODS).text()
    assert line_of(text, "CoOp")[3:5] == ["20.00 ↓", "40.00 ↓"]
    assert "↓" not in "".join(line_of(text, "KgCoOp") + line_of(text, "ZeroshotCLIP"))
    assert "CoOp: below zero-shot on: b." in text and "KgCoOp: below" not in text
    assert "↓: below zero-shot CLIP" in text


def test_zero_shot_counts_whatever_protocol_it_was_run_for(tmp_path):
    write_transfer(tmp_path, "CoOp", {"Source": 90, "a": 60}, "dg")
    zero_shot(tmp_path, {"Source": 80, "a": 50, "elsewhere": 1}, "cross")
    (found,) = transfer(load_results(tmp_path), "dg", METHODS)
    assert [row.label for row in found.rows] == ["ZeroshotCLIP", "CoOp"]
    assert found.columns == ["Source", "a"]


def test_the_source_column_may_come_from_the_sister_protocol(tmp_path):
    write_transfer(tmp_path, "CoOp", {"Source": 90, "a": 60}, "cross")
    write_transfer(tmp_path, "CoOp", {"V2": 70}, "dg")
    text = transfer_report(load_results(tmp_path), "dg", METHODS).text()
    assert line_of(text, "CoOp") == ["CoOp", "90.00", "70.00", "70.00", "1"]


def test_each_source_has_a_table(tmp_path):
    write_transfer(tmp_path / "1", "CoOp", {"a": 60})
    write_transfer(tmp_path / "2", "CoOp", {"Source": 10, "a": 20}, source="a")
    report = transfer_report(load_results(tmp_path), "cross", METHODS)
    assert sorted(table.title for table in report.tables) == ["Trained on Source", "Trained on a"]
    assert {line[7] for line in report.lines} == {"Source", "a"}


def test_a_missing_target_is_a_dash_and_leaves_no_average(tmp_path):
    write_transfer(tmp_path, "CoOp", {"Source": 90, "a": 60})
    write_transfer(tmp_path, "KgCoOp", {"Source": 90, "a": 60, "b": 20})
    write_run(tmp_path / "t", "CoOp", "b", "all", kind="train", protocol="cross", source="Source")
    text = transfer_report(load_results(tmp_path), "cross", METHODS).text()
    assert line_of(text, "CoOp")[3:] == ["—", "—", "1/1/0/0"]
    assert "CoOp: no Avg-C, a target is missing: b; trained, not evaluated." in text


def test_a_training_run_alone_is_no_evaluation(tmp_path):
    write_run(tmp_path, "CoOp", "Source", "all", kind="train", protocol="cross", source="Source")
    with pytest.raises(UserError, match="1 follow the protocol 'cross'.*none of these is an evaluation"):
        transfer(load_results(tmp_path), "cross", METHODS)


def test_robust_shows_alpha_and_what_chose_it(tmp_path):
    zero_shot(tmp_path, {"Source": 60, "r": 55}, "robust")
    write_transfer(tmp_path, "LinearProbe", {"Source": 70, "r": 40}, "robust", shots=0)
    merge = {"method": "wise_ft", "title": "WiSE-FT", "values": {"alpha": 0.5}, "parents": ["x"]}
    fields = {"shots": 0, "preset": "WiSE-FT (alpha 0.5)", "merge": merge, "alpha_chosen_on": "given"}
    write_transfer(tmp_path, "LinearProbe", {"Source": 72, "r": 50}, "robust", **fields)
    for seed, alpha in ((1, 0.4), (2, 0.6)):
        chosen = {"merge": merge | {"values": {"alpha": alpha}, "preset": "paper"}, "alpha_chosen_on": "validation"}
        chosen |= {"preset": f"WiSE-FT (alpha {alpha})", "shots": 0}
        write_transfer(tmp_path, "LinearProbe_LMC", {"Source": 74, "r": 56}, "robust", seed=seed, **chosen)
    report = transfer_report(load_results(tmp_path), "robust", METHODS)
    assert [line[0] for line in report.tables[0].rows] == [
        "ZeroshotCLIP", "LinearProbe", "LinearProbe + weight ens. (alpha 0.5)",
        "LinearProbe_LMC (paper) + weight ens. (alpha by validation)",
    ]  # fmt: skip
    rows = {line[0]: line[1:] for line in report.tables[0].rows}
    assert rows["LinearProbe"][:2] == ["—", "—"]
    assert rows["LinearProbe + weight ens. (alpha 0.5)"][:2] == ["0.5", "given"]
    assert rows["LinearProbe_LMC (paper) + weight ens. (alpha by validation)"] == [
        "0.4 to 0.6", "validation", "74.00 ± 0.00", "56.00 ± 0.00", "56.00 ± 0.00", "2",
    ]  # fmt: skip
    assert "robust" in report.name and "LinearProbe + weight ens. (alpha 0.5): below zero-shot on: r." in report.text()


def few(root, trainer, curve, dataset="a", seed=1, **fields):
    """Few-shot evaluations. curve: {shots: accuracy}."""
    for shots, accuracy in curve.items():
        folder = root / f"{trainer}-{dataset}-{shots}-{seed}"
        write_run(folder, trainer, dataset, "all", seed, accuracy, protocol="fewshot", shots=shots, **fields)


def test_fewshot_columns_are_shots_and_cells_averages_over_data_sets(tmp_path):
    for dataset, extra in (("a", 0), ("b", 10)):
        few(tmp_path, "CoOp", {1: 40 + extra, 2: 50 + extra, 16: 60 + extra}, dataset)
        few(tmp_path, "ZeroshotCLIP", {16: 50 + extra}, dataset, data_seen="none")
    report = fewshot_report(load_results(tmp_path), METHODS)
    assert report.tables[0].columns == ["method", "1 shot", "2 shots", "16 shots", "n"]
    text = report.text().split("Average over 2 data sets")[1]
    assert line_of(text, "CoOp") == ["CoOp", "45.00 ↓", "55.00", "65.00", "1"]
    assert line_of(text, "ZeroshotCLIP") == ["ZeroshotCLIP", "55.00", "55.00", "55.00", "1"]
    assert "CoOp: below zero-shot on: a at 1, b at 1." in text
    found = fewshot(load_results(tmp_path), METHODS)
    assert found.shots == [1, 2, 16] and found.datasets == ["a", "b"]


def test_fewshot_names_what_is_missing(tmp_path):
    few(tmp_path, "CoOp", {1: 40, 2: 50})
    few(tmp_path, "KgCoOp", {1: 40})
    text = fewshot_report(load_results(tmp_path), METHODS).text()
    assert line_of(text, "KgCoOp") == ["KgCoOp", "40.00", "—", "1/0"]
    assert "KgCoOp: no run on: a at 2." in text
