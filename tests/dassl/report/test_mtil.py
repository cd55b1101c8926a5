"""Tables and figures of streams of tasks, from result files that the evaluation itself writes."""

import json
from itertools import permutations

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from condu.evaluation import write_matrix
from dassl.report.figures.drawing import new_figure
from dassl.report.figures.mtil import heatmap
from dassl.report.figures.tsne import load_scatters, tsne, write_scatter
from dassl.report.protocols.mtil import mtil_report, orders, shown_streams, streams
from dassl.report.records import load_results
from dassl.utils import UserError
from mergetune.report import METHODS, main
from tests.fixtures.runs import line_of, read_csv, write_run
from tests.fixtures.streams import matrix_of_percent

TASKS = ["a", "b", "c"]
# after: a, b, c; Transfer 30, (20 + 40)/2 = 30; Average 70, 60, 50; Last 60, 70, 90
ROWS = [[80, 30, 20], [70, 80, 40], [60, 70, 90]]
ZERO_SHOT = [[50, 35, 25]] * 3


def write(folder, rows=ROWS, tasks=TASKS, plus=0, **facts):
    """An evaluated stream. plus: added to every cell."""
    facts = {
        "trainer": "ConDU", "preset": "paper", "protocol": "mtil", "order": "toy", "vote": {"name": "paper", "k": 4},
        "scale": "l1", "space": {"kind": "full"}, "seed": 1, "shots": 0, "backbone": {"name": "tiny"}, "wall_s": 1,
        "command": "", **facts,
    }  # fmt: skip
    percent = [[None if x is None else x + plus for x in row] for row in rows]
    write_matrix(folder, matrix_of_percent(tasks, percent), facts)


def baseline(folder, trainer, rows, **facts):
    write(folder, rows, trainer=trainer, vote=None, scale=None, **facts)


def report(root, protocol="mtil"):
    return mtil_report(load_results(root), protocol, METHODS)


def table(found, title):
    return next(t for t in found.tables if t.title.startswith(title))


def test_the_three_numbers_over_seeds_below_zero_shot_and_in_order(tmp_path):
    for seed in (1, 2):
        write(tmp_path / f"c{seed}", plus=seed, seed=seed)
    baseline(tmp_path / "z", "zero_shot", ZERO_SHOT)
    baseline(tmp_path / "e", "experts", [[80, 35, 25], [80, 80, 25], [80, 80, 90]])
    baseline(tmp_path / "s", "sequential", [[80, 10, 10], [30, 80, 10], [20, 30, 90]])
    found = table(report(tmp_path), "Transfer, Average, Last: order toy")
    assert found.columns == ["method", "Transfer", "Average", "Last", "n"]
    assert [row[0] for row in found.rows] == [
        "ZeroshotCLIP", "Sequential fine-tuning (FT)", "ConDU (FT, paper vote)", "Separate experts (FT)",
    ]  # fmt: skip
    lines = {row[0]: row[1:] for row in found.rows}
    assert lines["ConDU (FT, paper vote)"] == ["31.50 ± 0.50", "61.50 ± 0.50", "74.83 ± 0.50", "2"]
    assert lines["ZeroshotCLIP"] == ["30.00", "36.67", "36.67", "1"]
    # Transfer is compared with zero-shot's own 30 of this order, not with its mean over tasks
    assert lines["Sequential fine-tuning (FT)"] == ["10.00 ↓", "40.00", "46.67", "1"]


def test_rows_differ_by_vote_space_scale_preset_and_shots(tmp_path):
    write(tmp_path / "1")
    write(tmp_path / "2", vote={"name": "released"})
    write(tmp_path / "3", space={"kind": "lora_factors", "rank": 4})
    write(tmp_path / "4", scale="tensor_mean", preset="released")
    write(tmp_path / "5", shots=5)
    own = {"include_pretrained": True, "k": 2, "weighting": "minmax", "temp": 0.5, "space": "probabilities"}
    write(tmp_path / "6", vote=own)
    names = [row[0] for row in table(report(tmp_path), "Transfer, Average").rows]
    assert sorted(names) == [
        "ConDU (FT, k 2 and CLIP by minmax 0.5 of probabilities)",
        "ConDU (FT, paper vote), 5 shots",
        "ConDU (FT, paper vote), all images",
        "ConDU (FT, paper vote, scale tensor_mean)",
        "ConDU (FT, released vote)",
        "ConDU (LoRA, paper vote)",
    ]


def test_tasks_and_the_matrix_as_papers_print_them(tmp_path):
    write(tmp_path / "1")
    write(tmp_path / "2", plus=1, seed=2)
    found = report(tmp_path)
    assert table(found, "Transfer by task").rows == [["ConDU (FT, paper vote)", "—", "30.5", "30.5", "30.5"]]
    assert table(found, "Average by task").rows == [["ConDU (FT, paper vote)", "70.5", "60.5", "50.5", "60.5"]]
    assert table(found, "Last by task").columns == ["method", "a", "b", "c", "mean"]
    assert table(found, "Last by task").rows == [["ConDU (FT, paper vote)", "60.5", "70.5", "90.5", "73.8"]]
    matrix = table(found, "ConDU (FT, paper vote), accuracy after each task: order toy")
    assert matrix.rows[0] == ["a", "80.5", "30.5", "20.5"] and matrix.rows[2] == ["c", "60.5", "70.5", "90.5"]
    files = [str(tmp_path / seed / "results.json") for seed in "12"]
    for one, cell in ((table(found, "Last by task"), (0, 2)), (matrix, (1, 2))):
        assert one.notes == ["n: 2 seeds."] and one.rows[cell[0]][cell[1]].files == tuple(files)


def test_missing_cells_are_dashes_with_a_reason(tmp_path):
    baseline(tmp_path / "e", "experts", [[80, None, None], [80, 80, None], [80, 80, 90]])
    found = table(report(tmp_path), "Transfer, Average")
    assert found.rows == [["Separate experts (FT)", "—", "—", "83.33", "0/0/1"]]
    assert found.notes == ["Separate experts (FT): no Transfer and no Average, the matrix lacks cells that count."]
    assert table(report(tmp_path), "Separate experts").rows[0] == ["a", "80.0", "—", "—"]


def test_one_task_has_no_transfer(tmp_path):
    write(tmp_path, [[75]], ["a"])
    assert table(report(tmp_path), "Transfer, Average").rows[0][1:] == ["—", "75.00", "75.00", "0/1/1"]


def test_agnostic_stands_beside_the_known_experts_by_label_space(tmp_path):
    known = [[80, None, None], [79, 81, None], [78, 82, 92]]
    for labels, minus in (("target", 0), ("union", -10)):
        write(tmp_path / labels, protocol="mtil_agnostic", labels=labels, known=known, plus=minus)
    baseline(tmp_path / "z", "zero_shot", ZERO_SHOT)
    write(tmp_path / "mtil", plus=5)
    found = report(tmp_path, "mtil_agnostic")
    target = table(found, "Transfer, Average, Last: order toy, classes of the tested task")
    assert target.columns[-2:] == ["Last, task known", "n"]
    # zero-shot CLIP is told no task, so its run counts here too
    assert [row[0] for row in target.rows] == ["ZeroshotCLIP", "ConDU (FT, paper vote)"]
    assert target.rows[1][1:] == ["30.00", "60.00", "73.33", "84.00", "1"]
    union = table(found, "Transfer, Average, Last: order toy, all learned classes")
    assert union.rows == [["ConDU (FT, paper vote)", "20.00", "50.00", "63.33", "84.00", "1"]]
    last = [t for t in found.tables if t.title.startswith("Last by task")][1].rows
    assert last[1] == ["ConDU (FT, paper vote), task known", "78.0", "82.0", "92.0", "84.0"]
    matrix = table(found, "ConDU (FT, paper vote), vote / known expert")
    assert matrix.rows[1] == ["b", "70.0 / 79.0", "80.0 / 81.0", "40.0"]
    assert "ConDU" in report(tmp_path).text() and "known" not in report(tmp_path).text()


def many_orders(root):
    """Every order of three tasks but the first, each 1 better than the one before."""
    for k, order in enumerate(list(permutations(TASKS))[1:]):
        write(root / str(k), tasks=list(order), plus=k, order=",".join(order))


def test_many_orders_are_one_table_and_the_named_one_has_its_own(tmp_path):
    many_orders(tmp_path)
    write(tmp_path / "toy", plus=7)
    write(tmp_path / "toy2", plus=9, seed=2)
    found = streams(load_results(tmp_path), "mtil", METHODS)
    assert len(found) == 6 and [one.order for one in shown_streams(found)] == ["toy"]
    rows = table(report(tmp_path), "5 orders of 3 tasks").rows
    # Transfer 30 + 0..4
    assert rows[0] == ["ConDU (FT, paper vote): Transfer", "32.00", "1.41", "30.00", "34.00", "5"]
    assert [row[1] for row in rows] == ["32.00", "62.00", "75.33"]
    own = table(report(tmp_path), "Transfer, Average, Last: order toy").rows
    assert own == [["ConDU (FT, paper vote)", "38.00 ± 1.00", "68.00 ± 1.00", "81.33 ± 1.00", "2"]]
    assert len([t for t in report(tmp_path).tables if "after each task" in t.title]) == 1


def test_two_named_orders_have_tables_and_no_spread(tmp_path):
    write(tmp_path / "1", order="I")
    write(tmp_path / "2", tasks=["c", "a", "b"], order="II")
    found = report(tmp_path)
    assert [t.title for t in found.tables][:2] == [f"Transfer, Average, Last: order {o}" for o in ("I", "II")]
    assert not orders(streams(load_results(tmp_path), "mtil", METHODS))
    assert table(found, "Last by task: order II").columns == ["method", "c", "a", "b", "mean"]


def test_of_unnamed_orders_the_one_with_baselines_is_shown(tmp_path):
    many_orders(tmp_path)
    baseline(tmp_path / "s", "sequential", ROWS, order=None)
    write(tmp_path / "own", order="a,b,c")
    (shown,) = shown_streams(streams(load_results(tmp_path), "mtil", METHODS))
    assert shown.order == "a, b, c" and len(shown.rows) == 2


def test_a_random_order_that_is_the_named_one_too_is_no_duplicate(tmp_path, capsys):
    many_orders(tmp_path)
    write(tmp_path / "toy", order="toy_a-toy_b-toy_c")
    write(tmp_path / "5", order="a,b,c", plus=5)
    found = report(tmp_path)
    assert table(found, "Transfer, Average, Last: order toy_a-toy_b-toy_c").rows[0][1] == "30.00"
    assert table(found, "6 orders of 3 tasks").rows[0][1:] == ["32.50", "1.71", "30.00", "35.00", "6"]
    assert "Warning" not in capsys.readouterr().out


def test_ablations_are_a_table_of_their_own(tmp_path):
    write(tmp_path / "main")
    for k, title in enumerate(("ConDU", "k = 1", "k = 2", "k = 10")):
        write(tmp_path / str(k), plus=k, ablation=title)
    found = report(tmp_path)
    assert len(table(found, "Transfer, Average").rows) == 1
    rows = table(found, "Ablations: order toy").rows
    assert [row[:2] for row in rows] == [
        ["ConDU (FT)", "30.00"], ["k = 1 (FT)", "31.00"], ["k = 2 (FT)", "32.00"], ["k = 10 (FT)", "33.00"],
    ]  # fmt: skip


def test_the_newest_run_of_a_seed_counts(tmp_path, capsys):
    write(tmp_path / "old")
    write(tmp_path / "new", plus=2)
    assert table(report(tmp_path), "Transfer, Average").rows[0][1:] == ["32.00", "62.00", "75.33", "1"]
    assert "1 duplicated evaluated streams" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tasks", None, "one of the run's own tasks"),
        ("tasks", ["a", "b"], "one of the run's own tasks"),
        ("matrix", [1], "one of the run's own tasks"),
        ("matrix", {"tasks": TASKS}, "transfer: expected 3 numbers or null from 0 to 100, found None"),
        ("known", [[1, 2, 3]], "known: expected 3 x 3 numbers or null"),
        ("known", [[1, 2, "x"]] * 3, "known: expected 3 x 3 numbers or null"),
        ("known", [[1, 2, "3"]] * 3, "known: expected 3 x 3 numbers or null"),
        ("known", [[1, 2, 250]] * 3, "known: expected 3 x 3 numbers or null from 0 to 100"),
        ("metrics", {"last": 99.0}, "last 99 is not the mean 73.33 of its accuracies"),
        ("metrics", {"transfer": 5.0}, "transfer 5 is not the mean 30.00"),
    ],
)
def test_a_damaged_matrix_is_left_out_with_one_warning(tmp_path, capsys, field, value, reason):
    write(tmp_path / "good")
    write(tmp_path / "bad", seed=2)
    file = tmp_path / "bad" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    (found,) = streams(load_results(tmp_path), "mtil", METHODS)
    assert len(found.rows) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert str(file) in line and reason in line


def test_sessions_alone_are_no_stream(tmp_path):
    write_run(tmp_path, "ConDU", "ToyColours", "all", protocol="mtil", kind="train")
    with pytest.raises(UserError, match="No mtil table: of 1 results, 0 are evaluated streams"):
        streams(load_results(tmp_path), "mtil", METHODS)


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    many_orders(tmp_path / "runs" / "orders")
    write(tmp_path / "runs" / "own")
    baseline(tmp_path / "runs" / "z", "zero_shot", ZERO_SHOT)
    write_scatter(tmp_path / "runs" / "tsne.json", *features(), title="of a test")
    main([str(tmp_path / "runs"), "--figures", "--latex", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert line_of(printed, "ConDU (FT, paper vote): Last")[1:] == ["75.33", "1.41", "73.33", "77.33", "5"]
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    stems = ["matrix_mtil_ConDU_FT_paper_vote_toy", "orders_mtil_5_orders_of_3_tasks", "tsne"]
    assert written == {f"tables/mtil.{end}" for end in ("md", "csv", "tex")} | {
        f"figures/{stem}.{end}" for stem in stems for end in ("png", "csv")
    }
    for stem in stems:
        with Image.open(tmp_path / "out" / "figures" / f"{stem}.png") as image:
            image.load()
            assert image.width > 600
    cells = {(r["after"], r["task"]): r["mean"] for r in read_csv(tmp_path / "out" / "figures" / f"{stems[0]}.csv")}
    assert len(cells) == 9 and cells["b", "c"] == "40.00"
    numbers = read_csv(tmp_path / "out" / "tables" / "mtil.csv")
    own = [r for r in numbers if (r["order"], r["quantity"], r["trainer"]) == ("toy", "transfer", "ConDU")]
    assert [(r["task"], r["mean"]) for r in own] == [("", "30.00"), ("b", "30.00"), ("c", "30.00")]


def test_a_heatmap_shows_legible_numbers_and_where_learning_began():
    values = np.full((11, 11), np.nan)
    values.flat[:101] = np.arange(101)
    figure = new_figure(8, 6)
    axes = figure.subplots()
    heatmap(figure, axes, values)
    assert [text.get_text() for text in axes.texts] == [f"{x}.0" for x in range(101)]  # nothing in a missing cell
    for text, value in zip(axes.texts, range(101), strict=True):
        ground = luminance(axes.images[0].cmap(axes.images[0].norm(value)))
        light, dark = sorted((ground, luminance(to_rgba(text.get_color()))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG's bound for text
    assert axes.yaxis_inverted()  # the first session on top
    stair = axes.lines[-1].get_xydata()
    for i, j in np.ndindex(values.shape):  # the line runs over column j above its first learned cell
        assert np.allclose(stair[2 * j : 2 * j + 2, 0], [j - 0.5, j + 0.5])
        assert all((i > stair[2 * j : 2 * j + 2, 1]) == (i >= j))


def luminance(rgba):
    """Relative, of sRGB."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def features():
    """Two tasks of ten images each, by the expert and by a reconstruction close to it."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(20, 8)) + np.repeat([[0.0], [20.0]], 10, 0)
    about = [(task, kind, k) for kind in ("expert", "reconstructed") for task in ("a", "b") for k in range(10)]
    return np.concatenate([own, own + 1e-3]), about


def test_tsne_is_reproducible_and_keeps_neighbours(tmp_path):
    vectors, about = features()
    points = tsne(vectors)
    assert points.shape == (40, 2) and np.array_equal(points, tsne(vectors))
    between = np.linalg.norm(points[:20] - points[20:], axis=1)
    apart = np.linalg.norm(points[:10].mean(0) - points[10:20].mean(0))
    assert between.max() < apart / 3
    content = write_scatter(tmp_path / "tsne.json", vectors, about)
    assert content["tasks"] == ["a", "b"] and load_scatters(tmp_path) == [(tmp_path / "tsne.json", content)]


def test_tsne_refuses_what_it_cannot_project():
    for vectors in (np.zeros((3, 4)), np.full((5, 4), np.nan), np.zeros(9)):
        with pytest.raises(ValueError, match="four finite feature vectors"):
            tsne(vectors)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"tasks": []}, {"points": [{"task": "z"}]}, {"points": [{"task": "a", "kind": "expert"}]}]
)
def test_a_damaged_scatter_is_left_out_with_a_warning(tmp_path, capsys, change):
    content = write_scatter(tmp_path / "tsne.json", *features())
    (tmp_path / "tsne.json").write_text(json.dumps(content | change))
    assert load_scatters(tmp_path) == []
    assert str(tmp_path / "tsne.json") in capsys.readouterr().out
