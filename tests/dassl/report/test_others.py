"""The columns others, forgotten and epoch: by hand, what is missing, foreign entries, every form of a table."""

import numpy as np
import pytest

from dassl.report.figures.all import all_figures
from dassl.report.protocols.base2new import base2new, base2new_report, base2new_table
from dassl.report.protocols.paired import paired_difference, paired_report
from dassl.report.protocols.sweeps import sweeps_report
from dassl.report.records import load_results
from mergetune.report import METHODS
from tests.fixtures.runs import line_of, read_csv, write_run

ZERO_SHOT = {"trainer": "ZeroshotCLIP", "data_seen": "none", "template_family": ["coop"]}
FURTHER = {"trainer": "ZeroshotCLIP", "data_seen": "none", "template_family": ["dataset"], "templates": "{}."}
RELEASED, PAPER = ({"trainer": "CoOp_LMC", "preset": preset} for preset in ("released", "paper"))


def entry(**correct):
    """Others of 200 images each, half a percent an image."""
    sets = {name: {"correct": n, "total": 200, "template": "t", "split_digest": name} for name, n in correct.items()}
    return {"asked": ["auto"], "sets": sets}


def write_cell(root, others, dataset="toy_a", seed=1, base=80, new=60, **fields):
    folder = root / "-".join(map(str, [*fields.values(), dataset, seed])).replace("/", "")
    write_run(folder / "base", dataset=dataset, seed=seed, accuracy=base, **fields)
    return write_run(folder / "new", dataset=dataset, seed=seed, accuracy=new, subset="new", others=others, **fields)


def report(folder):
    return base2new_report(load_results(folder), METHODS)


def row(folder, name="CoOp", table=0):
    own = report(folder).tables[table]
    return dict(zip(own.columns, next(line for line in own.rows if line[0] == name), strict=True))


def test_others_and_forgotten_by_hand(tmp_path):
    for seed, mine in ((1, 70), (2, 80)):
        write_cell(tmp_path, entry(toy_b=100, toy_c=120), seed=seed, **ZERO_SHOT)
        write_cell(tmp_path, entry(toy_b=mine, toy_c=120), seed=seed)
        write_cell(tmp_path, entry(toy_a=100, toy_c=100), "toy_b", seed, **ZERO_SHOT)
        write_cell(tmp_path, entry(toy_a=80, toy_c=mine), "toy_b", seed)
    # on toy_a: zero-shot 55, seed 1 47.5, seed 2 50; on toy_b: 50, 37.5, 40
    assert row(tmp_path, table=1)["others"] == "48.75 ± 1.25" and row(tmp_path, table=1)["forgotten"] == "6.25 ± 1.25"
    assert row(tmp_path, table=1)["others/toy_b"] == "37.50 ± 2.50"
    average = row(tmp_path)
    assert [average[q] for q in ("others", "forgotten", "n")] == ["43.75 ± 1.25", "8.75 ± 1.25", "2"]
    assert row(tmp_path, "ZeroshotCLIP")["others"] == "52.50 ± 0.00"
    numbers = {(r["dataset"], r["quantity"]): r for r in read_csv(report(tmp_path).write(tmp_path / "out")[1])
               if r["method"] == "CoOp"}  # fmt: skip
    assert numbers["toy_b", "others"] | {"stamp_templates": ""} == numbers["toy_b", "base"] | {
        "quantity": "others", "mean": "38.75", "std": "1.25",
    }  # fmt: skip
    assert numbers["average", "others/toy_c"]["mean"] == "48.75"  # 60 on toy_a, 37.5 on toy_b
    assert numbers["average", "others/toy_a"]["mean"] == "40.00"  # of what was trained on toy_b alone


def test_what_was_forgotten_lends_a_row_none_of_zero_shot_clips_stamps(tmp_path):
    write_cell(tmp_path, entry(toy_b=100), **ZERO_SHOT, templates="a photo of a {}.")
    write_cell(tmp_path, entry(toy_b=80), templates="learned prompt")
    lines = read_csv(report(tmp_path).write(tmp_path / "out")[1])
    assert {(line["method"], line["stamp_templates"]) for line in lines} == {
        ("ZeroshotCLIP", "'a photo of a {}.'"), ("CoOp", "learned prompt"),
    }  # fmt: skip


def test_columns_stand_in_this_order_and_none_without_an_entry(tmp_path):
    write_cell(tmp_path / "old", None)
    assert base2new_table(base2new(load_results(tmp_path))).columns == [
        "method", "base", "new", "H of averages", "mean of H", "n",
    ]  # fmt: skip
    write_cell(tmp_path / "new", entry(toy_b=1), epochs=3)
    write_cell(tmp_path / "new", entry(toy_b=1), **ZERO_SHOT)
    found = base2new(load_results(tmp_path / "new"), METHODS)
    more = ["others", "forgotten", "epoch"]
    assert base2new_table(found).columns == ["method", "base", "new", "H of averages", "mean of H", *more, "n"]
    assert base2new_table(found, "toy_a").columns == ["method", "base", "new", "H", *more, "others/toy_b", "n"]


def test_a_mean_is_over_the_sets_that_every_row_has_and_the_rest_is_named(tmp_path):
    write_cell(tmp_path, entry(toy_b=100, toy_c=200), **ZERO_SHOT)
    write_cell(tmp_path, entry(toy_b=60))
    write_cell(tmp_path, entry(toy_b=80, toy_c=200), **PAPER)
    table = report(tmp_path).tables[0]
    assert [line[table.columns.index("others")] for line in table.rows] == ["50.00", "30.00", "40.00"]
    assert "toy_c is left out of others where a row lacks it: CoOp." in table.notes
    assert any("over all classes of toy_a, toy_b, without the data set of training;" in note for note in table.notes)


def test_a_set_of_which_rows_have_several_splits_counts_in_no_row(tmp_path):
    write_cell(tmp_path, entry(toy_b=100, toy_c=200))
    other = entry(toy_b=60, toy_c=100)
    other["sets"]["toy_c"]["split_digest"] = "another"
    write_cell(tmp_path, other, **PAPER)
    assert [line[5] for line in report(tmp_path).tables[0].rows] == ["50.00", "30.00"]
    assert "toy_c is left out of others where rows have several splits." in report(tmp_path).tables[0].notes


def test_a_row_without_an_entry_has_a_dash_and_changes_no_other(tmp_path):
    write_cell(tmp_path, entry(toy_b=100), **ZERO_SHOT)
    write_cell(tmp_path, entry(toy_b=60), **FURTHER)  # whatever it has: others are of the usual template
    write_cell(tmp_path, None)
    write_cell(tmp_path, {"asked": ["auto"], "bound": "its head", "sets": {}}, **PAPER)
    cells = [(row(tmp_path, name)["others"], row(tmp_path, name)["n"])
             for name in ("ZeroshotCLIP", "ZeroshotCLIP ({}.)", "CoOp", "CoOp_LMC (paper)")]  # fmt: skip
    assert cells == [("50.00", "1"), ("—", "1"), ("—", "1"), ("class-bound", "1")]
    write_cell(tmp_path, entry(toy_b=60), **RELEASED)
    table = report(tmp_path).tables[0]
    forgotten = {line[0]: line[table.columns.index("forgotten")] for line in table.rows}
    assert forgotten.pop("CoOp_LMC (released)") == "20.00"
    assert forgotten.pop("CoOp_LMC (paper)") == "class-bound" and {*forgotten.values()} == {"—"}


def test_a_data_set_or_seed_that_lacks_an_entry_is_said(tmp_path):
    write_cell(tmp_path, entry(toy_c=100))
    write_cell(tmp_path, entry(toy_c=120), seed=2)
    write_cell(tmp_path, None, seed=3)
    assert row(tmp_path)["n"] == "3/3/3/3/2"
    write_cell(tmp_path, None, "toy_b")
    write_cell(tmp_path, entry(toy_c=100), "toy_b", **PAPER)
    table = report(tmp_path).tables[0]
    assert row(tmp_path)["others"] == "—" and row(tmp_path, table=1)["others"] == "55.00 ± 5.00"
    assert "CoOp: no average of others, without any on toy_b." in table.notes
    write_cell(tmp_path / "one", entry(toy_c=100))
    for dataset in ("toy_a", "toy_b"):
        write_cell(tmp_path / "one", entry(toy_c=100) if dataset == "toy_a" else None, dataset, **PAPER)
    write_cell(tmp_path / "one", None, "toy_b")
    assert "others" not in report(tmp_path / "one").tables[2].columns
    assert {line[4] for line in paired_report(load_results(tmp_path / "one"), METHODS).tables[1].rows} == {"0.5 of 1"}


def test_sets_that_differ_between_data_sets_are_named_for_each(tmp_path):
    write_cell(tmp_path, entry(toy_c=100, toy_d=100))
    write_cell(tmp_path, entry(toy_a=100), "toy_b")
    (note,) = (note for note in report(tmp_path).tables[0].notes if note.startswith("others"))
    assert "of toy_c, toy_d (trained on toy_a); toy_a (trained on toy_b); by" in note
    assert "words are needed by 'a photo of a {}.', zero-shot CLIP's included." in note


def test_the_epoch_is_the_median_and_range_over_data_sets_and_seeds(tmp_path):
    for seed, epochs, warmup in ((1, 1, True), (2, 1, True), (3, 300, False)):
        write_cell(tmp_path, None, seed=seed, epochs=epochs, warmup=warmup, **RELEASED)
        write_cell(tmp_path, None, "toy_b", seed, epochs=2.5, warmup=False, **RELEASED)
        write_cell(tmp_path, None, seed=seed, epochs=1, warmup=True)  # stage 1 is always itself
        write_cell(tmp_path, None, seed=seed, warmup=True, lmc={"TAU": 0.3}, **PAPER)  # begins elsewhere
    write_cell(tmp_path, None, seed=1, **ZERO_SHOT)
    name = "CoOp_LMC (released)"
    assert [row(tmp_path, name, k)["epoch"] for k in (0, 1, 2)] == ["2.5 (1-300)", "1 (1-300)", "2.5"]
    assert [row(tmp_path, other)["epoch"] for other in ("CoOp", "ZeroshotCLIP")] == ["1", "—"]
    notes = [note for note in report(tmp_path).tables[0].notes if "stage 1 itself" in note]
    assert notes == [f"{name}: 2 of 6 cells are stage 1 itself, an epoch at the warm-up rate."]
    lines = {(line[0], line[5], line[6]): line[7:9] for line in report(tmp_path).lines}
    assert lines[name, "toy_a", "epoch"] == ["100.67", f"{np.std([1, 1, 300]):.2f}"]
    assert lines[name, "average", "stage 1 itself"][0] == "33.33"
    assert lines["CoOp", "toy_a", "stage 1 itself"] == ["", ""]


@pytest.mark.parametrize(
    "others",
    [
        3, "auto", [], {"sets": [1]}, {"sets": "toy_b"}, {"sets": {"toy_b": 3}}, {"sets": {"toy_b": {"correct": 1}}},
        entry(toy_b=201), entry(toy_b=-1), entry(toy_b=1.5), entry(toy_b=True), entry(toy_b=None), entry(toy_b="1"),
        {"sets": {"toy_b": {"correct": 0, "total": 0}}}, {"sets": {"toy_b": {"correct": 0, "total": 10**10}}},
        {"sets": {"toy_b": {"correct": [1], "total": [2]}}},
    ],
)  # fmt: skip
def test_a_result_with_a_bad_entry_is_left_out_with_a_warning(tmp_path, capsys, others):
    file = write_cell(tmp_path, others)
    assert [record["subset"] for record in load_results(tmp_path)] == ["base"]
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{file} is left out: field 'others'" in line


def test_a_bad_warmup_is_left_out(tmp_path, capsys):
    write_run(tmp_path, warmup=1)
    assert load_results(tmp_path) == [] and "field 'warmup'" in capsys.readouterr().out


def test_hostile_names_of_sets_are_text_and_stand_for_no_column(tmp_path):
    names = ["base", "n", "=cmd()", "a|b</script>", "\x1b[31m\n", "x" * 50, ""]
    bad = entry(**dict.fromkeys(names, 50)) | {"asked": [[]]}
    for own in bad["sets"].values():
        own |= {"split_digest": [own["split_digest"]], "template": {}}
    write_cell(tmp_path, bad)
    table = base2new_table(base2new(load_results(tmp_path)), "toy_a")
    assert table.rows[0][1:4] == ["80.00", "60.00", "68.57"] and len(table.columns) == 6 + len(names)
    text = report(tmp_path)
    assert "a\\|b&lt;/script>" in text.markdown() and "\x1b" not in text.csv() + text.text() + text.latex()
    assert text.text().count("25.00") == 2  # neither a terminal nor a printed page has room for each of the others
    assert text.latex().count("25.00") == 2 and "mean of H" in text.latex()


def test_a_terminal_has_120_letters(tmp_path):
    fields = {**FURTHER, "templates": "a photo of a thing, seen from far away, on a {}."}
    for seed in (1, 2):
        write_cell(tmp_path, entry(toy_b=100), seed=seed, **ZERO_SHOT)
        write_cell(tmp_path, entry(toy_b=100), seed=seed, **fields)
        write_cell(tmp_path, entry(toy_b=50), seed=seed, new=50, epochs=100 + 200 * seed, warmup=False, **RELEASED)
    lines = report(tmp_path).text().splitlines()
    start = lines.index("Average over 1 data set")
    body = lines[start + 1 : start + 9]
    assert max(map(len, body)) <= 120 and body[1].split("  ")[-1] == "n"
    assert "mean of H" not in body[1] and "mean of H" in report(tmp_path).markdown()
    folded = [line.split("  ")[0] for line in body if line.startswith("ZeroshotCLIP (")]
    assert folded and line_of("\n".join(body), "CoOp_LMC (released)")[4:] == ["25.00 ± 0.00", "25.00 ± 0.00",
                                                                            "400 (300-500)", "2"]  # fmt: skip


def test_pairs_are_compared_in_others_too(tmp_path):
    ours, theirs = {1: 60, 2: 70, 3: 65}, {1: 50, 2: 56, 3: 57}
    for seed in ours:
        write_cell(tmp_path, entry(toy_b=theirs[seed]), seed=seed)
        write_cell(tmp_path, entry(toy_b=ours[seed]), seed=seed, **PAPER)
    own = paired_report(load_results(tmp_path), METHODS)
    h, others = own.tables
    expected = paired_difference(*({seed: n / 2 for seed, n in both.items()} for both in (ours, theirs)))
    interval = f"{expected.low:+.2f} to {expected.high:+.2f}"
    assert others.columns[2] == "difference in others"
    assert others.rows == [["CoOp_LMC (paper)", "CoOp", "+5.33", interval, "1 of 1", "3", str(expected.needed)]]
    assert own.columns[:7] == h.columns and own.lines[0] == h.rows[0] + others.rows[0][2:]
    assert len(set(own.columns)) == len(own.columns)


def test_a_sweep_trades_base_for_others(tmp_path):
    def setting(folder, correct, base, **lmc):
        fields = {"preset": "paper", "lmc": {"LAMBDA": 8.0, "BETA": 0.5} | lmc, "max_epoch": 5}
        write_cell(folder, entry(toy_b=correct), base=base, trainer="CoOp_LMC", **fields)

    for k, lam in enumerate((1.0, 8.0)):
        setting(tmp_path / "one", 80 + 20 * k, 80 - 10 * k, LAMBDA=lam)
        for m, beta in enumerate((0.1, 0.5)):
            setting(tmp_path / "two", 80 + 20 * k + 10 * m, 80 - 10 * k, LAMBDA=lam, BETA=beta)
    (table,) = sweeps_report(load_results(tmp_path / "one"), METHODS).tables
    columns = [table.columns.index(name) for name in ("lambda", "base", "others")]
    assert [[line[k] for k in columns] for line in table.rows] == [["1", "80.00", "40.00"], ["8", "70.00", "50.00"]]
    tables = sweeps_report(load_results(tmp_path / "two"), METHODS).tables
    assert [t.title.split(": ")[1].split(" by")[0] for t in tables] == ["H of averages", "base", "others"]
    assert tables[2].rows == [["1", "40.00", "45.00"], ["8", "50.00", "55.00"]]
    assert any(note.startswith("others: ") for note in tables[2].notes)
    more = {"preset": "paper", "lmc": {"LAMBDA": 8.0, "BETA": 9.0}, "max_epoch": 5}
    write_cell(tmp_path / "two", entry(toy_b=1, toy_c=3), trainer="CoOp_LMC", **more)
    notes = " ".join(sweeps_report(load_results(tmp_path / "two"), METHODS).tables[-1].notes)
    assert "toy_c is left out of others where a row lacks it: lambda 1, beta 0.1, lambda 8, beta 0.1" in notes


def test_the_figure_has_a_point_for_each_row_with_others(tmp_path):
    write_cell(tmp_path, entry(toy_b=100), base=60, **ZERO_SHOT)
    write_cell(tmp_path, None)
    for seed, correct in ((1, 50), (2, 60)):
        write_cell(tmp_path, entry(toy_b=correct), seed=seed, **PAPER)
    records = load_results(tmp_path)
    image, numbers = all_figures([tmp_path], records, tmp_path / "figures", METHODS, ["others"])
    assert image.name == "base_others.png" and image.stat().st_size > 10_000
    assert [list(line.values()) for line in read_csv(numbers)] == [
        ["ZeroshotCLIP", "60.00", "", "50.00", "", "1"], ["CoOp_LMC (paper)", "80.00", "0.00", "27.50", "2.50", "2"],
    ]  # fmt: skip
