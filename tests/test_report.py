"""Tables and figures from run folders: H by hand, both averages, deviations, gaps, duplicates, bad files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.report.base2new import base2new, to_csv_text, to_markdown, to_text, write_base2new
from dassl.report.figures import path_figures
from dassl.report.methods import Methods
from dassl.report.paths import load_paths
from dassl.report.results import group_by, load_results, newest_each, select
from dassl.report.stats import harmonic_mean, summarise_average
from dassl.utils import UserError
from mergetune.report import METHODS, main

ROOT = Path(__file__).parents[1]


def write_run(folder, trainer="CoOp", dataset="toy_a", subset="base", seed=1, accuracy=50, **fields):
    """One finished run, an evaluation unless `kind` says otherwise -> the path of its results.json."""
    content = {
        "format": 1, "kind": "eval", "trainer": trainer, "preset": "", "dataset": dataset,
        "protocol": "base2new", "subset": subset, "shots": 16, "seed": seed,
        "metrics": {"accuracy": accuracy}, "backbone": {"name": "tiny"},
        "command": "train.py --eval-only", **fields,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return file


def write_pairs(root, scores, **fields):
    """scores: {data set: [(base, new) of seed 1, of seed 2, ...]}; None leaves a run out."""
    for dataset, pairs in scores.items():
        for seed, pair in enumerate(pairs, start=1):
            for subset, accuracy in zip(("base", "new"), pair, strict=True):
                if accuracy is not None:
                    folder = root / "-".join(map(str, [*fields.values(), dataset, subset, seed]))
                    write_run(folder, dataset=dataset, subset=subset, seed=seed, accuracy=accuracy, **fields)


def read_csv(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def only(found):
    """The single row of a table."""
    (row,) = found.rows
    return row


def test_harmonic_mean_by_hand():
    assert harmonic_mean(80, 60) == pytest.approx(9600 / 140)
    assert harmonic_mean(50, 50) == 50
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.005)


def test_one_data_set_averages_h_over_seeds_with_the_population_deviation(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (90, 30)]})
    found = base2new(load_results(tmp_path))
    cell = found.cell(only(found), "toy_a")
    assert cell["base"] == (85, 5, 2)
    assert cell["new"] == (45, 15, 2)
    # H is 68.571... for seed 1 and 45 for seed 2
    assert cell["H"].mean == pytest.approx((480 / 7 + 45) / 2)
    assert cell["H"].std == pytest.approx((480 / 7 - 45) / 2)
    assert "85.00 ± 5.00" in to_text(found)
    assert "56.79 ± 11.79" in to_text(found)


def test_the_two_averages_of_h_differ_and_are_both_named(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(40, 90)]})
    found = base2new(load_results(tmp_path))
    average = found.average(only(found))
    assert (average["base"].mean, average["new"].mean) == (60, 75)
    assert average["H of averages"].mean == pytest.approx(9000 / 135)
    assert average["mean of H"].mean == pytest.approx((9600 / 140 + 7200 / 130) / 2)
    for text in (to_text(found), to_markdown(found), to_csv_text(found)):
        assert "H of averages" in text and "mean of H" in text
        assert "66.67" in text and "61.98" in text


def test_the_average_deviates_over_the_averages_of_single_seeds(tmp_path):
    # seed 1: base 70, new 50; seed 2: base 70, new 60. The base deviations of 10 cancel between the data sets
    write_pairs(tmp_path, {"toy_a": [(80, 50), (60, 60)], "toy_b": [(60, 50), (80, 60)]})
    found = base2new(load_results(tmp_path))
    average = found.average(only(found))
    assert average["base"] == (70, 0, 2)
    assert average["new"] == (55, 5, 2)
    first, second = 7000 / 120, 8400 / 130
    assert average["H of averages"].mean == pytest.approx(2 * 70 * 55 / 125)
    assert average["H of averages"].std == pytest.approx((second - first) / 2)


def test_a_single_seed_has_no_deviation(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    found = base2new(load_results(tmp_path))
    assert found.cell(only(found), "toy_a")["base"] == (80, None, 1)
    assert "±" not in to_text(found).split("mean ±")[0]


def test_a_method_that_lacks_a_cell_shows_it_and_has_no_average(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60)], "toy_b": [(70, None)]}, trainer="CoOp")
    write_pairs(tmp_path, {"toy_a": [(50, 50)], "toy_b": [(50, 50)]}, trainer="ZeroshotCLIP")
    found = base2new(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == ["ZeroshotCLIP", "CoOp"]
    whole, broken = (found.average(row) for row in found.rows)
    assert whole["mean of H"].mean == 50
    assert broken["base"].mean == 75
    assert broken["new"] is broken["H of averages"] is broken["mean of H"] is None
    text = to_text(found)
    assert "CoOp: not averaged where a data set is missing: toy_b (new)." in text
    line = next(line for line in text.split("toy_b")[1].splitlines() if line.startswith("CoOp"))
    assert line.split() == ["CoOp", "70.00", "\N{EM DASH}", "\N{EM DASH}", "1/0/0"]
    missing = [r for r in csv.DictReader(to_csv_text(found).splitlines()) if not r["mean"]]
    assert {(r["method"], r["dataset"], r["quantity"], r["n"]) for r in missing} == {
        ("CoOp", "toy_b", "new", "0"), ("CoOp", "toy_b", "H", "0"), ("CoOp", "average", "new", "0"),
        ("CoOp", "average", "H of averages", "0"), ("CoOp", "average", "mean of H", "0"),
    }  # fmt: skip


def test_uneven_seeds_are_said_and_the_average_is_that_of_the_printed_means(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (60, 60)], "toy_b": [(50, 40), (None, None)]})
    found = base2new(load_results(tmp_path))
    assert found.average(only(found))["base"] == (60, None, 1)
    assert "CoOp: data sets have different seeds" in to_text(found)


def test_h_uses_the_seeds_that_have_both_halves(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (10, None)]})
    found = base2new(load_results(tmp_path))
    assert found.cell(only(found), "toy_a")["H"].mean == pytest.approx(9600 / 140)
    assert "2/1/1" in to_text(found)


def test_no_shared_seed_still_averages_the_means():
    summary = summarise_average({"toy_a": {1: 10.0}, "toy_b": {2: 30.0}})
    assert summary == (20, None, 0)
    assert summarise_average({"toy_a": {1: 10.0}, "toy_b": {}}) is None


def test_the_newest_of_duplicated_runs_counts_with_one_warning(tmp_path, capsys):
    old = [write_run(tmp_path / f"old{seed}", seed=seed, accuracy=10) for seed in (1, 2)]
    new = [write_run(tmp_path / f"again{seed}", seed=seed, accuracy=90) for seed in (1, 2)]
    for file in old:
        os.utime(file, (1000, 1000))
    found = base2new(load_results(tmp_path))
    assert found.cell(only(found), "toy_a")["base"] == (90, 0, 2)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(warnings) == 1 and "2 duplicated evaluations" in warnings[0]
    assert all(str(file) in warnings[0] for file in old + new)


def test_overlapping_folders_are_read_once(tmp_path, capsys):
    write_run(tmp_path / "runs" / "one")
    assert len(load_results(tmp_path, tmp_path / "runs")) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"format": 1, "trai', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"format": 2, "trainer": "CoOp"}', "expected format 1, found 2"),
        ('{"accuracy": 3}', "expected format 1, found None"),
        ('{"format": 1, "trainer": 7}', "field 'trainer'"),
        ("[" * 100_000, "left out"),
    ],
)
def test_a_damaged_or_foreign_file_is_left_out_with_one_warning(tmp_path, capsys, content, reason):
    write_run(tmp_path / "good")
    bad = tmp_path / "bad" / "results.json"
    bad.parent.mkdir()
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [r["file"] for r in load_results(tmp_path)] == [tmp_path / "good" / "results.json"]
    (line,) = capsys.readouterr().out.splitlines()
    assert str(bad) in line and reason in line


@pytest.mark.parametrize(
    "fields",
    [{"seed": None}, {"seed": True}, {"metrics": []}, {"metrics": {"accuracy": np.nan}}, {"subset": ...}],
)
def test_a_result_with_a_bad_field_is_left_out(tmp_path, capsys, fields):
    write_run(tmp_path, **fields)
    assert load_results(tmp_path) == []
    assert next(iter(fields)).removesuffix("s") in capsys.readouterr().out


def test_a_training_run_is_no_evaluation(tmp_path):
    write_run(tmp_path / "train", accuracy=99, kind="train", command="train.py")
    write_run(tmp_path / "new", subset="new", accuracy=40)
    found = base2new(load_results(tmp_path))
    assert found.cell(only(found), "toy_a")["base"] is None
    assert "toy_a (base; trained, not evaluated)" in to_text(found)


def test_without_the_field_the_command_says_what_a_run_was(tmp_path):
    write_run(tmp_path / "1", kind=..., command="train.py --trainer CoOp --eval-only")
    write_run(tmp_path / "2", kind=..., command=["train.py", "--eval-only"])
    write_run(tmp_path / "3", kind=..., command="train.py --output-dir x--eval-only")
    write_run(tmp_path / "4", kind=..., command=...)
    assert [r["kind"] for r in load_results(tmp_path)] == ["eval", "eval", "train", "train"]


def test_other_protocols_and_subsets_do_not_enter(tmp_path):
    write_run(tmp_path / "a", subset="all")
    write_run(tmp_path / "b", protocol="cross")
    records = load_results(tmp_path)
    assert len(records) == 2
    with pytest.raises(UserError, match="of 2 results, 0 follow"):
        base2new(records)


def test_methods_have_the_names_and_order_of_the_table(tmp_path):
    pairs = [
        ("CoOp_LMC", "paper"), ("Other", "fast"), ("Other", ""), ("KgCoOp_COOP_LMC", "released"),
        ("CoOp", ""), ("CoOp_Average", ""), ("ZeroshotCLIP", None), ("CoOp_LMC", "continued"),
    ]  # fmt: skip
    for k, (trainer, preset) in enumerate(pairs):
        write_run(tmp_path / str(k), trainer=trainer, preset=preset)
    found = base2new(load_results(tmp_path), METHODS)
    assert [row.label for row in found.rows] == [
        "ZeroshotCLIP", "CoOp", "CoOp continued", "Average", "CoOp_LMC (released)", "CoOp_LMC (paper)",
        "Other", "Other (fast)",
    ]  # fmt: skip


def test_runs_under_the_old_and_the_new_name_share_a_row(tmp_path):
    write_run(tmp_path / "1", trainer="CoOp_LMC", preset="released", seed=1, accuracy=40)
    write_run(tmp_path / "2", trainer="KgCoOp_COOP_LMC", preset="released", seed=2, accuracy=60)
    found = base2new(load_results(tmp_path), METHODS)
    assert found.cell(only(found), "toy_a")["base"] == (50, 10, 2)


def test_runs_that_differ_in_shots_or_backbone_are_never_averaged_together(tmp_path):
    write_run(tmp_path / "1", accuracy=40, seed=1)
    write_run(tmp_path / "2", accuracy=60, seed=2, shots=4)
    write_run(tmp_path / "3", accuracy=80, seed=3, backbone={"name": "ViT-B/16"})
    text = to_text(base2new(load_results(tmp_path)))
    assert all(f"CoOp, {run} shots" in text for run in ("tiny, 16", "tiny, 4", "ViT-B/16, 16"))
    assert "60.00" in text and "±" not in text.split("mean ±")[0]


def test_shots_do_not_split_a_method_that_sees_no_data(tmp_path):
    write_run(tmp_path / "1", trainer="ZeroshotCLIP", data_seen="none", shots=16, seed=1)
    write_run(tmp_path / "2", trainer="ZeroshotCLIP", data_seen="none", shots=-1, seed=2)
    write_run(tmp_path / "3", trainer="CoOp", shots=16)
    found = base2new(load_results(tmp_path))
    assert [row.label for row in found.rows] == ["CoOp", "ZeroshotCLIP"]
    assert "(tiny, 16 shots)" in to_text(found).splitlines()[0]


def test_shared_settings_stand_in_the_heading(tmp_path):
    write_run(tmp_path / "1", trainer="CoOp")
    write_run(tmp_path / "2", trainer="ZeroshotCLIP")
    assert "(tiny, 16 shots)" in to_markdown(base2new(load_results(tmp_path))).splitlines()[0]


def test_files_are_written_whole_with_two_decimals(tmp_path):
    write_pairs(tmp_path / "runs", {"toy_a": [(100 / 3, 200 / 3)]})
    found = base2new(load_results(tmp_path / "runs"))
    markdown, table = write_base2new(found, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["base2new.csv", "base2new.md"]
    assert "| CoOp | 33.33 | 66.67 | 44.44 | 1 |" in markdown.read_text(encoding="utf-8")
    rows = read_csv(table)
    assert [r["mean"] for r in rows if r["dataset"] == "toy_a"] == ["33.33", "66.67", "44.44"]
    assert rows[0] | {"mean": "", "std": ""} == {
        "method": "CoOp", "trainer": "CoOp", "preset": "", "backbone": "tiny", "shots": "16",
        "dataset": "average", "quantity": "base", "mean": "", "std": "", "n": "1",
    }  # fmt: skip


def test_text_columns_line_up(tmp_path):
    write_pairs(tmp_path, {"toy_a": [(80, 60), (70, 50)]}, trainer="ZeroshotCLIP")
    write_pairs(tmp_path, {"toy_a": [(80, None)]}, trainer="CoOp")
    lines = to_text(base2new(load_results(tmp_path), METHODS)).splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("method"))
    start = lines[head].index("base")
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines[head + 2 : head + 4])


def test_selecting_and_grouping():
    records = [{"a": k % 2, "b": k, "file": k, "written": k} for k in range(4)]
    assert [r["b"] for r in select(records, a=1)] == [1, 3]
    assert [r["b"] for r in select(records, b=(0, 3), a=(0, 1))] == [0, 3]
    assert {k: len(v) for k, v in group_by(records, lambda r: r["a"]).items()} == {0: 2, 1: 2}
    assert [r["b"] for r in newest_each(records, lambda r: r["a"])] == [2, 3]


def straight_path(zero_shot, ours, tuned, points=21):
    """A path.json whose curves are straight pieces between three values, accuracy; loss is 100 minus it."""
    t = np.linspace(0, 2, points)
    accuracy = np.interp(t, [0, 1, 2], [zero_shot, ours, tuned])
    curves = {"accuracy": accuracy.tolist(), "loss": ((100 - accuracy) / 40).tolist()}
    return {"format": 1, "space": "features", "t": t.tolist(), "base": curves, "new": curves}


def write_path(folder, path, **fields):
    write_run(folder, kind="train", **{"trainer": "CoOp_LMC", "preset": "paper", **fields})
    (folder / "path.json").write_text(json.dumps(path))


def test_a_figure_for_each_family_with_its_numbers(tmp_path):
    for seed, ours in ((1, 70), (2, 80)):
        write_path(tmp_path / f"a{seed}", straight_path(50, ours, 60), seed=seed)
        write_path(tmp_path / f"b{seed}", straight_path(30, ours, 40), seed=seed, dataset="toy_b")
    write_path(tmp_path / "c", straight_path(50, 55, 60), preset="continued")
    written = path_figures([tmp_path], tmp_path / "figures", METHODS)
    names = ["path_CoOp_continued_features", "path_CoOp_LMC_paper_features"]
    assert [p.name for p in written] == [f"{name}.{end}" for name in names for end in ("png", "csv")]
    with Image.open(tmp_path / "figures" / f"{names[1]}.png") as image:
        image.load()
        assert image.width > 1200 and round(image.info["dpi"][0]) == 150
    numbers = read_csv(tmp_path / "figures" / f"{names[1]}.csv")
    rows = {(r["dataset"], r["subset"], r["quantity"], r["t"]): r for r in numbers}
    assert len(rows) == 3 * 2 * 2 * 21
    middle = rows["average", "new", "accuracy", "1"]
    assert (float(middle["mean"]), float(middle["std"]), middle["n"]) == (75, 5, "2")
    assert float(rows["average", "base", "accuracy", "0"]["mean"]) == 40
    assert float(rows["toy_b", "base", "accuracy", "0.5"]["mean"]) == 52.5


def test_a_long_preset_name_gives_a_file_name_that_a_disk_takes(tmp_path):
    for k, tail in enumerate(("TAU", "BETA")):
        preset = "paper, changed: " + ", ".join(f"TRAINER.LMC.KEY{i}" for i in range(20)) + tail
        write_path(tmp_path / str(k), straight_path(50, 70, 60), preset=preset)
    pictures = path_figures([tmp_path], tmp_path, METHODS)[::2]
    assert len(set(pictures)) == 2
    assert all(p.is_file() and len(p.name) < 140 for p in pictures)


def test_one_run_makes_a_figure_too(tmp_path):
    write_path(tmp_path / "a", straight_path(50, 70, 60) | {"space": "weights"})
    picture, table = path_figures([tmp_path], tmp_path)
    assert picture.name == "path_CoOp_LMC_paper_weights.png" and picture.stat().st_size > 10_000
    assert {r["dataset"] for r in read_csv(table)} == {"average", "toy_a"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"t": [0, 1, 2]}, "21 or more"),
        ({"t": np.linspace(0, 1, 21).tolist()}, "from 0 over 1 to 2"),
        ({"t": np.linspace(0, 2, 22).tolist()}, "from 0 over 1 to 2"),
        ({"new": None}, "'new'"),
        ({"new": {"loss": [1.0] * 21, "accuracy": [1.0] * 20}}, "new accuracy: expected one number"),
        ({"new": {"loss": [float("nan")] * 21, "accuracy": [1.0] * 21}}, "new loss"),
        ({"format": 3}, "format 1"),
    ],
)
def test_a_bad_path_is_left_out_with_one_warning(tmp_path, capsys, change, reason):
    write_path(tmp_path / "good", straight_path(50, 70, 60))
    write_path(tmp_path / "bad", straight_path(50, 70, 60) | change, seed=2)
    assert [r["seed"] for r in load_paths(tmp_path)] == [1]
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "bad" / "path.json") in line and reason in line


def test_the_path_of_an_unfinished_run_is_left_out(tmp_path, capsys):
    write_path(tmp_path, straight_path(50, 70, 60))
    (tmp_path / "results.json").unlink()
    assert load_paths(tmp_path) == []
    assert "path.json is left out" in capsys.readouterr().out


def test_runs_on_another_grid_are_left_out_with_a_warning(tmp_path, capsys):
    for seed in (1, 2):
        write_path(tmp_path / f"a{seed}", straight_path(50, 70, 60), seed=seed)
    write_path(tmp_path / "b", straight_path(50, 0, 60, points=41), seed=3)
    _, table = path_figures([tmp_path], tmp_path)
    assert str(tmp_path / "b" / "path.json") in capsys.readouterr().out
    rows = [r for r in read_csv(table) if (r["dataset"], r["quantity"]) == ("average", "accuracy")]
    assert {(r["n"], r["std"]) for r in rows} == {("2", "0.000000")}


def test_the_command_prints_and_writes_beside_the_runs(tmp_path, capsys):
    write_pairs(tmp_path, {"toy_a": [(80, 60)]})
    write_path(tmp_path / "train", straight_path(50, 70, 60))
    main([str(tmp_path), "--figures"])
    assert "68.57" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {"base2new.csv", "base2new.md"}
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_the_command_refuses_in_one_line(tmp_path):
    for argument, reason in (
        (tmp_path, "no readable results.json"),
        (tmp_path / "none", "No folder of runs"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{reason}"):
            main([str(argument)])


def test_the_table_needs_no_plotting(tmp_path):
    write_pairs(tmp_path / "runs", {"toy_a": [(80, 60)]})
    code = (
        "import sys; from mergetune.report import main; main(sys.argv[1:]); "
        "sys.exit(bool({'matplotlib', 'open_clip', 'sklearn', 'tensorboard'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tables" / "base2new.md").is_file()


def test_help_says_what_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--figures" in text and "H of averages" in text and "examples" in text


def test_an_unknown_method_needs_no_table():
    assert Methods().label("Mine", "fast") == "Mine (fast)"
    assert Methods().label("Mine") == "Mine"
