"""Figures from run folders: families, numbers beside the images, damaged files."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dassl.report.figures.all import all_figures, change_figures, drawing, fewshot_figure, sweep_figures
from dassl.report.figures.drawing import new_figure
from dassl.report.figures.paths import load_planes
from dassl.report.methods import NONE
from dassl.report.protocols.paths import barriers_report, families, load_paths
from dassl.report.records import load_results
from mergetune.report import METHODS
from tests.conftest import ROOT
from tests.fixtures.runs import read_csv, straight_path, write_path, write_run


def draw(name, runs, methods=NONE, out=None):
    """The figures of one name -> [PNG, CSV, ...]."""
    return all_figures([runs], load_results(runs), out or runs, methods, [name])


def test_a_figure_for_each_family_with_its_numbers(tmp_path):
    for seed, ours in ((1, 70), (2, 80)):
        write_path(tmp_path / f"a{seed}", straight_path(50, ours, 60), seed=seed)
        write_path(tmp_path / f"b{seed}", straight_path(30, ours, 40), seed=seed, dataset="toy_b")
    write_path(tmp_path / "c", straight_path(50, 55, 60), preset="continued")
    written = draw("path", tmp_path, METHODS, tmp_path / "figures")
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
    images = draw("path", tmp_path, METHODS)[::2]
    assert len(set(images)) == 2
    assert all(p.is_file() and len(p.name) < 140 for p in images)


def test_one_run_makes_a_figure_too(tmp_path):
    write_path(tmp_path / "a", straight_path(50, 70, 60) | {"space": "weights"})
    image, table = draw("path", tmp_path)
    assert image.name == "path_CoOp_LMC_paper_weights.png" and image.stat().st_size > 10_000
    assert {r["dataset"] for r in read_csv(table)} == {"average", "toy_a"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"t": [0, 1, 2]}, "21 or more"),
        ({"t": np.linspace(0, 1, 21).tolist()}, "from 0 over 1 to 2"),
        ({"t": np.linspace(0, 2, 22).tolist()}, "from 0 over 1 to 2"),
        ({"new": None}, "new loss: expected 21"),
        ({"new": {"loss": [1.0] * 21, "accuracy": [1.0] * 20}}, "new accuracy: expected 21 finite numbers"),
        ({"new": {"loss": [float("nan")] * 21, "accuracy": [1.0] * 21}}, "new loss"),
        ({"new": {"loss": [1.0] * 21, "accuracy": [250.0] * 21}}, "finite numbers from 0 to 100, found [250.0"),
        ({"direct": {"t": [0, 1], "all": {"loss": [1, 1], "accuracy": [1, 1]}}}, "base loss: expected 2"),
        ({"direct": {"t": [1, 1]}}, "direct t: expected rising"),
        ({"solutions": 3}, "left out"),
        ({"others": 3}, "left out"),
        ({"others": {"sets": ["toy_b"], "loss": [1.0] * 21, "accuracy": [1.0] * 20}}, "others accuracy: expected 21"),
        ({"format": 3}, "format 1"),
    ],
)
def test_a_bad_path_is_left_out_with_one_warning(tmp_path, capsys, change, reason):
    write_path(tmp_path / "good", straight_path(50, 70, 60))
    write_path(tmp_path / "bad", straight_path(50, 70, 60) | change, seed=2)
    assert [r["seed"] for r in load_paths(tmp_path)] == [1]
    (line,) = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "bad" / "path.json") in line and reason in line


def test_the_card_of_other_weights_is_left_out_by_tables_and_figures(tmp_path, capsys):
    card = straight_path(50, 70, 60) | {"plane": plane()}
    for seed, digest in enumerate(("a", "b"), start=1):
        write_path(tmp_path / str(seed), card | {"digest": digest}, seed=seed, weights={"digest": "a"})
    write_path(tmp_path / "old", card, seed=3)  # neither says
    for load in (load_paths, load_planes):
        assert [r["seed"] for r in load(tmp_path)] == [1, 3]
        assert f"{tmp_path / '2' / 'path.json'} is left out: it is of other weights" in capsys.readouterr().out
    assert set(barriers_report([tmp_path]).tables[0].rows[0][2].files) == {
        str(tmp_path / name / "results.json") for name in ("1", "old")
    }


def test_the_path_of_an_unfinished_run_is_left_out(tmp_path, capsys):
    write_path(tmp_path, straight_path(50, 70, 60))
    (tmp_path / "results.json").unlink()
    assert load_paths(tmp_path) == []
    assert "path.json is left out" in capsys.readouterr().out


def test_runs_on_another_grid_are_left_out_with_a_warning(tmp_path, capsys):
    for seed in (1, 2):
        write_path(tmp_path / f"a{seed}", straight_path(50, 70, 60), seed=seed)
    write_path(tmp_path / "b", straight_path(50, 0, 60, points=41), seed=3)
    _, table = draw("path", tmp_path)
    assert str(tmp_path / "b" / "path.json") in capsys.readouterr().out
    rows = [r for r in read_csv(table) if (r["dataset"], r["quantity"]) == ("average", "accuracy")]
    assert {(r["n"], r["std"]) for r in rows} == {("2", "0.000000")}


def with_direct(path, middle):
    """The path with a direct line whose accuracy is `middle` half-way."""
    t = np.linspace(0, 1, 21)
    accuracy = np.interp(t, [0, 0.5, 1], [50, middle, 60])
    curves = {"accuracy": accuracy.tolist(), "loss": (1 - accuracy / 100).tolist()}
    return path | {"direct": {"t": t.tolist(), "base": curves, "new": curves}}


def test_the_direct_line_is_drawn_and_averaged_where_all_runs_have_it(tmp_path):
    for seed, middle in ((1, 30), (2, 40)):
        write_path(tmp_path / "a" / str(seed), with_direct(straight_path(50, 70, 60), middle), seed=seed)
    _, table = draw("path", tmp_path / "a")
    rows = {(r["path"], r["subset"], r["quantity"], r["t"]): r for r in read_csv(table)}
    assert rows["direct", "new", "accuracy", "0.5"]["mean"] == "35.000000"
    assert rows["through ours", "new", "accuracy", "0.5"]["mean"] == "60.000000"
    write_path(tmp_path / "a" / "3", straight_path(50, 70, 60), seed=3)
    _, table = draw("path", tmp_path / "a")
    assert {r["path"] for r in read_csv(table)} == {"through ours"}


def others(*values, sets=("toy_b", "toy_c")):
    """A card's entry of others, of straight pieces between accuracies as `straight_path` has them."""
    words = {"asked": ["auto"], "sets": list(sets), "zero_shot_template": "a photo of a {}."}
    return {"others": straight_path(*values)["new"] | words}


def test_what_other_data_sets_lose_is_drawn_where_all_cards_say_it(tmp_path, monkeypatch):
    for seed, end in ((1, 20), (2, 30)):
        write_path(tmp_path / str(seed), straight_path(50, 70, 60) | others(40, 35, end), seed=seed)
    image, table = draw("change", tmp_path, METHODS)
    assert image.name == "change_CoOp_LMC_paper.png" and image.stat().st_size > 10_000
    rows = {
        (r["subset"], r["t"]): r for r in read_csv(table) if (r["dataset"], r["quantity"]) == ("average", "accuracy")
    }
    assert (rows["others", "2"]["mean"], rows["others", "2"]["std"]) == ("-15.000000", "5.000000")
    assert [rows[subset, "1"]["mean"] for subset in ("base", "others")] == ["20.000000", "-5.000000"]
    _, table = draw("path", tmp_path)
    assert {r["subset"] for r in read_csv(table)} == {"base", "new", "others"}
    (curves,) = families(load_paths(tmp_path), METHODS)
    assert curves.others == "others: mean over 2 other data sets; zero-shot (a photo of a {}.)"
    captions = []
    monkeypatch.setattr(drawing, "new_figure", lambda *words: captions.append(words[3]) or new_figure(*words))
    write_path(tmp_path / "old", straight_path(50, 70, 60), seed=3)
    _, table = draw("path", tmp_path)
    assert {r["subset"] for r in read_csv(table)} == {"base", "new"} and {r["n"] for r in read_csv(table)} == {"3"}
    assert "no curve of others: not all cards have it" in captions[0] and not [*change_figures([tmp_path], [], METHODS)]


def test_a_card_of_a_head_bound_to_its_classes_says_so_and_is_drawn_without_others(tmp_path):
    bound = {"others": {"asked": ["auto"], "bound": "its head is bound to its classes", "sets": []}}
    write_path(tmp_path, straight_path(50, 70, 60) | bound)
    assert {r["subset"] for r in read_csv(draw("path", tmp_path)[1])} == {"base", "new"}


@pytest.mark.parametrize("values", [(50, 52, 52), (50, 50.5, 50.4), (50, 30, 50.1)])
def test_no_words_of_the_small_figure_cover_each_other(tmp_path, values):
    write_path(tmp_path, straight_path(50, 52, 52.1) | others(*values))
    figure, *_ = next(change_figures([tmp_path], [], METHODS))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    words = [*axes.texts, *axes.get_xticklabels(), *figure.findobj(lambda part: part is figure._supxlabel)]
    boxes = [part.get_window_extent() for part in words]
    assert len(axes.texts) == 6  # at ours and at the end, for each subset
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_both_spaces_of_a_card_have_a_figure(tmp_path):
    path = straight_path(50, 70, 60)
    write_path(tmp_path, path | {"weights": straight_path(50, 40, 60) | {"space": "weights"}})
    images = draw("path", tmp_path, METHODS)[::2]
    assert [p.name for p in images] == [f"path_CoOp_LMC_paper_{s}.png" for s in ("features", "weights")]


def test_a_path_without_zero_shot_starts_at_ours(tmp_path):
    curves = {"accuracy": np.linspace(70, 60, 21).tolist(), "loss": np.linspace(1, 2, 21).tolist()}
    path = {"format": 1, "t": np.linspace(1, 2, 21).tolist(), "solutions": ["ours", "fine_tuned"], "all": curves}
    write_path(tmp_path, path)
    _, table = draw("path", tmp_path)
    assert {(r["subset"], r["dataset"]) for r in read_csv(table)} == {("all", "toy_a"), ("all", "average")}
    assert min(float(r["t"]) for r in read_csv(table)) == 1


def plane(size=5):
    """A plane whose loss is x + 10 y."""
    x, y = np.linspace(0, 1, size), np.linspace(0, 2, size)
    loss = (x[None] + 10 * y[:, None]).tolist()
    marks = {"zero_shot": (0, 0), "fine_tuned": (1, 0), "ours": (0.5, 1)}
    points = {name: {"x": a, "y": b} for name, (a, b) in marks.items()}
    own = {"x": x.tolist(), "y": y.tolist(), "loss": loss, "accuracy": loss, "points": points}
    return {"space": "weights", "base": own, "new": own}


def test_a_plane_is_drawn_with_its_numbers(tmp_path):
    write_path(tmp_path / "a", straight_path(50, 70, 60) | {"plane": plane()})
    write_path(tmp_path / "b", straight_path(50, 70, 60) | {"plane": {"missing": "on one line"}})
    image, table = draw("plane", tmp_path, METHODS)
    assert image.name == "plane_CoOp_LMC_paper_toy_a_seed_1_weights.png" and image.stat().st_size > 10_000
    rows = read_csv(table)
    assert len(rows) == 2 * 25
    assert all(float(r["loss"]) == pytest.approx(float(r["x"]) + 10 * float(r["y"])) for r in rows)


@pytest.mark.parametrize(
    "change",
    [{"x": [0, 1]}, {"loss": [[1.0] * 5] * 4}, {"points": {"ours": {}}}, {"y": "no"}, {"x": [0.5] * 5}]
    + [{"x": [1], "y": [1], "loss": [[1]], "accuracy": [[1]]}],
)
def test_a_damaged_plane_is_left_out_with_a_warning(tmp_path, capsys, change):
    bad = plane()
    bad["base"] = bad["base"] | change
    write_path(tmp_path, straight_path(50, 70, 60) | {"plane": bad})
    assert load_planes(tmp_path) == []
    assert "the plane in" in capsys.readouterr().out


def test_curves_by_shots_and_by_a_swept_key(tmp_path):
    for shots in (1, 2, 4):
        for trainer, accuracy in (("CoOp", 50 + shots), ("KgCoOp", 52 + shots)):
            fields = {"protocol": "fewshot", "shots": shots, "accuracy": accuracy, "subset": "all"}
            write_run(tmp_path / f"{trainer}{shots}", trainer, **fields)
    write_run(tmp_path / "z", "ZeroshotCLIP", protocol="fewshot", data_seen="none", accuracy=51, subset="all")
    for tau in (0.0, 0.3, 1.0):
        for subset in ("base", "new"):
            fields = {"preset": f"paper, changed: {tau}", "lmc": {"TAU": tau}, "subset": subset, "accuracy": 60 + tau}
            write_run(tmp_path / f"{tau}{subset}", "CoOp_LMC", protocol="sweep", **fields)
    written = all_figures([tmp_path], load_results(tmp_path), tmp_path / "out", METHODS)
    assert [p.name for p in written] == [
        "fewshot.png", "fewshot.csv", "sweep_CoOp_LMC_paper_tau.png", "sweep_CoOp_LMC_paper_tau.csv",
    ]  # fmt: skip
    rows = {(r["method"], r["shots"]): r["mean"] for r in read_csv(written[1])}
    assert rows["CoOp", "4"] == "54.00" and rows["ZeroshotCLIP", "1"] == "51.00"
    assert [r["mean"] for r in read_csv(written[3]) if r["quantity"] == "new"] == ["60.00", "60.30", "61.00"]


def test_styles_differ_without_colour():
    looks = [drawing.style(k) for k in range(12)]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == 12


def test_the_zero_shot_end_is_named_by_its_template(tmp_path):
    path = straight_path(50, 70, 60) | {"zero_shot_template": "a shape in {}."}
    write_path(tmp_path / "a", path)
    (curves,) = families(load_paths(tmp_path), METHODS)
    assert curves.ends == ["zero-shot (a shape in {}.)", "CoOp_LMC (paper)", "fine-tuned"]
    write_path(tmp_path / "b", path | {"zero_shot_template": "{} texture."}, dataset="toy_b")
    (curves,) = families(load_paths(tmp_path), METHODS)
    assert curves.ends[0] == "zero-shot (each data set's own template)"


@pytest.mark.parametrize(
    "line",
    [
        "from dassl.report.figures.drawing import new_figure, save; save(sys.argv[1], new_figure(1, 1), 'a', [], [])",
        "from datasets.toy.draw import glyph_mask; assert glyph_mask('a', 'DejaVuSans', 16, 16, 12).any()",
    ],
)
def test_a_backend_that_is_not_there_is_no_matter(tmp_path, line):
    """MPLBACKEND as Jupyter sets it for the processes of a notebook."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "Dassl.ProGrad.pytorch")))
    env = os.environ | {"MPLBACKEND": "module://nothing_inline.backend_inline", "PYTHONPATH": paths}
    code = f"import sys; {line}; import os; assert os.environ['MPLBACKEND'].startswith('module://nothing')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_values_of_a_sweep_that_lie_close_have_room_for_their_labels(tmp_path):
    for tau in (0.0, 0.01, 0.5):
        for subset in ("base", "new"):
            write_run(tmp_path / f"{tau}{subset}", trainer="CoOp_LMC", subset=subset, accuracy=50, protocol="sweep",
                      preset="paper" if tau else "paper, changed: TRAINER.LMC.TAU", lmc={"TAU": tau})  # fmt: skip
    figure, *_ = next(sweep_figures([], load_results(tmp_path), METHODS))
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["0", "0.01", "0.5"]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_no_legend_covers_a_line(tmp_path):
    for shots in (1, 16):
        for k, trainer in enumerate(("CoOp", "KgCoOp")):
            write_run(tmp_path / f"{shots}{trainer}", trainer=trainer, protocol="fewshot", subset="all", shots=shots,
                      accuracy=50 + k + shots)  # fmt: skip
    figure, *_ = next(fewshot_figure([], load_results(tmp_path), METHODS))
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent()) and axes.get_legend() is None
