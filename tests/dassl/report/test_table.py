"""One table in every format, and marks below zero-shot."""

import re

import pytest

from dassl.report.frame import Summary, barrier, is_below
from dassl.report.protocols.base2new import base2new, base2new_report
from dassl.report.records import load_results
from dassl.report.table import Report, Table, latex_text, show, to_csv
from mergetune.report import METHODS
from tests.fixtures.runs import line_of, write_pairs

TABLE = Table(
    "50 % of_all", ["method", "a&b", "n"], [["x_1", "1.00 ± 0.50 ↓", "—"], ["{y}", "2 > 1", "3"]], ["note #1"]
)


def test_latex_has_every_cell_and_no_sign_of_its_own():
    lines = TABLE.latex().splitlines()
    assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
    assert r"\caption{50 \% of\_all}" in lines and r"\begin{tabular}{lrr}" in lines
    assert r"method & a\&b & n \\" in lines and r"x\_1 & 1.00 $\pm$ 0.50 $\downarrow$ & --- \\" in lines
    assert r"\{y\} & 2 $>$ 1 & 3 \\" in lines
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = TABLE.latex()
    assert body.count("{") - body.count("\\{") == body.count("}") - body.count("\\}")
    assert all(ord(sign) < 128 for sign in body)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\r=1", "\u202eabc", "\ud800", "a\u2028b", "\x9b1m", "\t=1+1"])
def test_no_writer_lets_a_sign_through_that_is_none(text):
    table = Table(text, ["method", text], [[text, text]], [text])
    report = Report("x", text, [table], [text], ["method", text], [[text, text]])
    for written in (report.text(), report.markdown(), report.latex(), report.csv()):
        assert written.replace("\n", "").isprintable() and written.encode()
    assert len(report.csv().splitlines()) == 2 and "\n\n".join([report.markdown()]).count("\n| ") == 3
    for cell in report.csv().replace("\n", ",").split(","):
        assert not cell.lstrip().startswith("=")


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd()", "-2+x", "\uff1d1+1"])
def test_a_spreadsheet_runs_no_cell(cell):
    assert to_csv(["a"], [[cell]]) == f"a\n'{cell}\n"


def test_markdown_makes_no_links_or_cells_of_a_name():
    line = Table("t", ["method"], [["[a](javascript:x) | <b>"]]).markdown().splitlines()[-1]
    assert line == "| [a]\\(javascript:x) \\| &lt;b> |"


def test_a_row_of_latex_is_no_argument_of_the_one_before():
    body = Table("t", ["method", "n"], [["[2cm]", "1"], ["*", "2"]]).latex().splitlines()
    assert r"{}[2cm] & 1 \\" in body and r"{}* & 2 \\" in body


def test_latex_text_is_escaped_once():
    assert latex_text("a_b\\c~^") == r"a\_b\textbackslash{}c\textasciitilde{}\textasciicircum{}"


def test_a_report_as_latex_has_every_table(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(50, 40)]})
    report = base2new_report(load_results(tmp_path))
    written = report.write(tmp_path / "out", latex=True)
    assert [path.suffix for path in written] == [".md", ".csv", ".tex"]
    text = written[2].read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert re.search(r"% .*\\usepackage\{booktabs\}", text)
    assert not re.search(r"(?<!\\)_", text)


def test_what_prints_alike_is_not_below():
    assert is_below(Summary(49.99, None, 1), Summary(50.0, None, 1))
    assert not is_below(Summary(49.996, None, 1), Summary(50.0, None, 1))
    assert not is_below(None, Summary(50.0, None, 1)) and not is_below(Summary(1.0, None, 1), None)
    assert show(Summary(49.0, 1.0, 2), below=True) == "49.00 ± 1.00 ↓"


def test_base_to_new_marks_h_and_new_and_lists_the_data_sets(tmp_path):
    write_pairs(tmp_path / "z", {"toy_a": [(50, 50)], "toy_b": [(50, 50)]}, trainer="ZeroshotCLIP")
    write_pairs(tmp_path / "c", {"toy_a": [(90, 45)], "toy_b": [(45, 52)]}, trainer="CoOp")
    found = base2new(load_results(tmp_path), METHODS)
    coop = found.rows[1]
    # 90 and 45 have an H of 60, 45 and 52 one of 48.2
    columns = [(dataset, q) for dataset in found.datasets for q in ("new", "H")]
    assert found.below(coop, columns) == [("toy_a", "new"), ("toy_b", "H")] and not found.below(found.rows[0], columns)
    report = base2new_report(load_results(tmp_path), METHODS)
    assert "CoOp: below zero-shot on: toy_a (new), toy_b (H)." in report.text()
    first, second = (table.text() for table in report.tables[1:])
    assert line_of(first, "CoOp") == ["CoOp", "90.00", "45.00 ↓", "60.00", "1"]
    assert line_of(second, "CoOp")[1:4] == ["45.00", "52.00", "48.25 ↓"]
    assert line_of(report.tables[0].text(), "CoOp")[2] == "48.50 ↓"


def test_another_backbone_is_no_reference(tmp_path):
    write_pairs(tmp_path / "z", {"toy_a": [(50, 50)]}, trainer="ZeroshotCLIP", backbone={"name": "ViT-B/16"})
    write_pairs(tmp_path / "c", {"toy_a": [(40, 45)]}, trainer="CoOp")
    assert "below zero-shot on" not in base2new_report(load_results(tmp_path), METHODS).text()


def test_the_barrier_is_what_stands_above_the_straight_line():
    t = [0.0, 0.5, 1.0]
    assert barrier(t, [1.0, 3.0, 2.0]) == 1.5  # 3 above the middle of 1 and 2
    assert barrier(t, [1.0, 1.0, 2.0]) == 0  # a convex loss has none
    assert abs(barrier(t, [2.0, 1.6, 1.0]) - 0.1) < 1e-12
    assert barrier(t, [80.0, 60.0, 70.0], low_is_good=False) == 15
    assert barrier([1.0, 1.5, 2.0], [1.0, 3.0, 2.0]) == 1.5
    convex = [(x / 10) ** 2 for x in range(11)]
    assert barrier([x / 10 for x in range(11)], convex) == 0


def test_rows_that_saw_other_data_or_were_chosen_otherwise_are_named(tmp_path):
    shots, seen = "16 shots of base classes", "all images of all classes, unlabelled"
    write_pairs(tmp_path / "z", {"a": [(50, 50)]}, trainer="ZeroshotCLIP", data_seen="none", chosen_on="none")
    write_pairs(tmp_path / "c", {"a": [(50, 50)]}, trainer="CoOp", data_seen=shots, chosen_on="last_step")
    assert "Trained on" not in base2new_report(load_results(tmp_path), METHODS).text()
    for trainer, data, chosen in (("KgCoOp", shots, "last_step"), ("PromptKD", seen, "validation")):
        write_pairs(tmp_path / trainer, {"a": [(50, 50)]}, trainer=trainer, data_seen=data, chosen_on=chosen)
    notes = base2new_report(load_results(tmp_path), METHODS).tables[0].notes
    assert notes[-2:] == [
        f"Trained on {shots}: CoOp, KgCoOp; {seen}: PromptKD.",
        "Checkpoint chosen on last_step: CoOp, KgCoOp; validation: PromptKD.",
    ]


def test_no_cell_is_run_by_a_spreadsheet_or_read_as_html():
    table = Table("a<b", ["method", "=1+1"], [["=cmd()", "-1.50"], ["@SUM(a)", "+3 to +4"], ["-x|<script>", "0"]])
    rows = to_csv(table.columns, table.rows).splitlines()
    assert rows == ["method,'=1+1", "'=cmd(),-1.50", "'@SUM(a),+3 to +4", "'-x|<script>,0"]
    assert to_csv(["-2+cmd|' /C calc'!A0"], []).startswith("'-2+cmd")
    text = table.markdown()
    assert "<" not in text and "| -x\\|&lt;script> | 0 |" in text
