"""Barriers of path cards, by hand."""

import pytest

from dassl.report.protocols.paths import barriers_report
from dassl.utils import UserError
from mergetune.report import METHODS
from tests.fixtures.runs import straight_path, write_path


def bumped(height, at=5):
    """A straight path whose base loss rises by `height` at one point of its first piece."""
    path = straight_path(50, 70, 60)
    base = {q: list(path["base"][q]) for q in path["base"]}
    base["loss"][at] += height
    return path | {"base": base}


def test_a_barrier_is_of_each_run_then_averaged(tmp_path):
    # at other places, so the averaged curve would rise by a half of it
    for seed, height, at in ((1, 0.2, 3), (2, 0.4, 6)):
        write_path(tmp_path / str(seed), bumped(height, at), seed=seed)
        write_path(tmp_path / f"b{seed}", bumped(0.0), seed=seed, dataset="toy_b")
    report = barriers_report([tmp_path], METHODS)
    (table,) = report.tables
    assert table.columns[2:] == [f"{q} {line}" for q in ("loss", "accuracy") for line in ("Z-O", "O-F", "Z-F")] + ["n"]
    # mean of 0.3 and 0; over seeds the averages are 0.1 and 0.2
    none, flat = "0.0000 ± 0.0000", "0.00 ± 0.00"
    assert table.rows == [
        ["CoOp_LMC (paper)", "base", "0.1500 ± 0.0500", none, "—", flat, flat, "—", "2"],
        ["CoOp_LMC (paper)", "new", none, none, "—", flat, flat, "—", "2"],
    ]
    assert "Space of features, average over 2 data sets" in report.text()
    first = next(line for line in report.lines if line[6:9] == ["loss", "zero-shot to ours", "base"])
    assert first[9:] == ["0.150000", "0.050000", "2"]


def test_a_method_without_zero_shot_has_the_second_line_alone(tmp_path):
    t = [1 + k / 20 for k in range(21)]
    curves = {"accuracy": [50.0] * 21, "loss": [1.0] * 21}
    path = {"format": 1, "t": t, "solutions": ["ours", "fine_tuned"], "base": curves, "new": curves}
    write_path(tmp_path / "kd", path, trainer="PromptKD_LMC")
    write_path(tmp_path / "coop", bumped(0.1))
    rows = barriers_report([tmp_path], METHODS).tables[0].rows
    assert rows[2] == ["PromptKD_LMC (paper)", "base", "—", "0.0000", "—", "—", "0.00", "—", "1"]


def test_a_method_that_lacks_cards_is_averaged_over_the_others_and_says_so(tmp_path):
    for dataset in ("toy_a", "toy_b"):
        write_path(tmp_path / dataset, bumped(0.2), dataset=dataset)
    write_path(tmp_path / "kg", bumped(0.1), trainer="KgCoOp_LMC")
    (table,) = barriers_report([tmp_path], METHODS).tables
    assert table.notes == ["KgCoOp_LMC (paper): average over 1 of them, no card on: toy_b."]
    assert {str(tmp_path / name / "results.json") for name in ("toy_a", "toy_b")} == set(table.rows[0][2].files)


def test_a_row_of_others_is_over_the_cards_that_have_it(tmp_path):
    curves = {"loss": [1.0] * 21, "accuracy": [50.0] * 10 + [44.0] + [50.0] * 10, "sets": ["toy_b"]}
    write_path(tmp_path / "a", straight_path(50, 70, 60) | {"others": curves})
    write_path(tmp_path / "b", straight_path(50, 70, 60), dataset="toy_b")
    (table,) = barriers_report([tmp_path], METHODS).tables
    assert [row[1] for row in table.rows] == ["base", "new", "others"]
    assert table.notes == ["CoOp_LMC (paper), others: average over 1 of them, no card on: toy_b."]
    curves["accuracy"][5] = 44.0  # 3 below the line from 50 to 44, where the other card is 3 above it
    write_path(tmp_path / "b", straight_path(50, 70, 60) | {"others": curves}, dataset="toy_b")
    (table,) = barriers_report([tmp_path], METHODS).tables
    assert not table.notes and str(table.rows[2][5]) == "1.50"


def test_no_card_no_table(tmp_path):
    with pytest.raises(UserError, match=r"No barriers table: no path\.json"):
        barriers_report([tmp_path], METHODS)
