"""Reading results.json: duplicates, damaged and foreign files, old fields."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.report.protocols.base2new import base2new
from dassl.report.records import group_by, load_results, newest_each, select
from dassl.utils import checkpoint_digest
from mergetune.report import main
from tests.fixtures.runs import only, write_run


def test_the_newest_of_duplicated_runs_counts_with_one_warning(tmp_path, capsys):
    old = [write_run(tmp_path / f"old{seed}", seed=seed, accuracy=10) for seed in (1, 2)]
    new = [write_run(tmp_path / f"again{seed}", seed=seed, accuracy=90) for seed in (1, 2)]
    for file in old:
        os.utime(file, (1000, 1000))
    found = base2new(load_results(tmp_path))
    assert found.on(only(found), "toy_a")["base"][:3] == (90, 0, 2)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(warnings) == 1 and "2 duplicated evaluations" in warnings[0]
    assert all(str(file) in warnings[0] for file in old + new)


def test_overlapping_folders_are_read_once(tmp_path, capsys):
    write_run(tmp_path / "runs" / "one")
    assert len(load_results(tmp_path, tmp_path / "runs")) == 1
    assert capsys.readouterr().out == ""


def test_runs_without_results_are_named_in_one_line(tmp_path, capsys):
    for seed in range(5):
        file = write_run(tmp_path / f"seed{seed}", seed=seed)
        for name in ("config.yaml", "log.txt"):
            file.with_name(name).touch()
        if seed:
            file.unlink()
    assert len(load_results(tmp_path)) == 1
    shown = "; ".join(str(tmp_path / f"seed{seed}") for seed in (1, 2, 3))
    assert capsys.readouterr().out == f"Warning: unfinished, or results.json is lost: {shown}; and 1 more\n"


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
    [
        {"seed": None}, {"seed": True}, {"metrics": []}, {"metrics": {"accuracy": np.nan}}, {"subset": ...},
        {"metrics": {"accuracy": 10**400}}, {"metrics": {"accuracy": -5}}, {"metrics": {"accuracy": 250}},
        {"accuracy": 60, "correct": 10, "total": 20}, {"subset": "old"}, {"kind": "merge"}, {"tasks": [["a"]]},
        {"template_family": [1]}, {"labels": []}, {"shots": 10**10}, {"split_file": ["a"]}, {"weights": []},
        {"accuracy": 50, "total": 0, "correct": 5}, {"accuracy": 50, "total": -10, "correct": -5},
        {"accuracy": 50, "correct": 30, "total": 20}, {"metrics": {"accuracy": 60, "error_rate": 60, "metric": 1}},
    ],
)  # fmt: skip
def test_a_result_with_a_bad_field_is_left_out(tmp_path, capsys, fields):
    write_run(tmp_path, **fields)
    assert load_results(tmp_path) == []
    assert re.search(next(iter(fields)).replace("metrics", "metric|error_rate"), capsys.readouterr().out)


def test_half_a_character_is_left_out_and_no_text_reaches_a_terminal_s_escapes(tmp_path, capsys):
    write_run(tmp_path / "1", dataset="\ud800x")
    write_run(tmp_path / "2", dataset="a\n\\input{b}\x1b[31m", backbone={"name": "tiny\r", "digest": ["\x07"]})
    (record,) = load_results(tmp_path)
    assert record["dataset"] == "a \\input{b} [31m"
    assert record["backbone"] == {"name": "tiny ", "digest": [" "]}
    assert "surrogates not allowed" in capsys.readouterr().out


def test_the_tables_say_what_was_left_out(tmp_path, capsys):
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", tasks=[["a"]])
    main([str(tmp_path)])
    assert f"left out, for they could not be read: {bad}" in (tmp_path / "tables" / "base2new.md").read_text()


HUGE = 10**400
HOSTILE = {
    "trainer": "ConDU", "protocol": "mtil", "subset": "all", "tasks": ["a", "b"], "order": "I",
    "metrics": {"last": 80.0},
    "matrix": {"tasks": ["a", "b"], "accuracy": [[80, 30], [70, 90]], "transfer": [None, 30], "average": [75, 60],
               "last": [70, 90]},
}  # fmt: skip


ODD = [
    {"lmc": {"TAU": HUGE, "BETA": float("nan")}}, {"lmc": {"TAU": [1], "BETA": True}}, {"epochs": float("inf")},
    {"history": [{"epoch": 1, "loss": 1e308}, {"epoch": 2, "loss": 1e149}], "kind": "train"},
    {"history": [{"epoch": HUGE}], "kind": "train"},
    {"preset": r"$\bad$", "history": [{"epoch": 1, "loss": 1.0}], "kind": "train"},
    {"wall_s": -1, "epochs": 1, "kind": "train"}, {"templates": {"a": [1]}}, {"templates": [[HUGE]]},
    {"merge": {"method": "ties", "values": {"density": HUGE, "x": [1]}, "preset": ["p"]}}, {"seed": HUGE},
    {"backbone": {"name": ["x"]}}, {"versions": [float("nan")]}, {"protocol": "fewshot", "shots": HUGE},
    {"protocol": "robust", "subset": "all", "source": ""}, {"dataset": "", "trainer": ""},
    HOSTILE | {"space": {"kind": ["x"]}}, HOSTILE | {"vote": {"weighting": "minmax", "temp": "x"}},
    HOSTILE | {"scale": [1], "ablation": "k\n1"}, HOSTILE | {"known": [[1, 2], [HUGE, 3]]},
]  # fmt: skip


def test_no_record_ends_the_report(tmp_path):
    """What is odd in one run, in fields that tables, figures or the comparison read, costs at most that run."""
    write_run(tmp_path / "runs" / "good", dataset="EuroSAT", backbone={"name": "ViT-B/16"})
    for k, fields in enumerate(ODD):
        for seed in (2 * k, 2 * k + 1):
            write_run(tmp_path / "runs" / f"odd{seed}", **{"trainer": "CoOp_LMC", "seed": seed} | fields)
    main([str(tmp_path), "--figures", "--against", "paper", "--html", str(tmp_path / "page.html")])
    assert "CoOp,CoOp,,ViT-B/16,16,EuroSAT,base,50.00," in (tmp_path / "tables" / "base2new.csv").read_text()


def test_a_folder_whose_name_is_no_text_is_reported_on(tmp_path):
    write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n\x1b[31m")))
    write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")), tasks=[["a"]])
    main([str(tmp_path), "--html", str(tmp_path / "page.html"), "--latex"])
    assert all(file.read_text(encoding="utf-8") for file in (tmp_path / "tables").iterdir())


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "good")
    deep = tmp_path
    for _ in range(20):  # beyond what a path may hold
        monkeypatch.chdir(deep)
        deep = Path("d" * 250)
        deep.mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load_results(tmp_path)) == 1
    assert re.search(r"Warning: /\S*d{250} is left out: File name too long", capsys.readouterr().out)


def test_without_the_field_the_command_says_what_a_run_was(tmp_path):
    write_run(tmp_path / "1", kind=..., command="train.py --trainer CoOp --eval-only")
    write_run(tmp_path / "2", kind=..., command=["train.py", "--eval-only"])
    write_run(tmp_path / "3", kind=..., command="train.py --output-dir x--eval-only")
    write_run(tmp_path / "4", kind=..., command=...)
    assert [r["kind"] for r in load_results(tmp_path)] == ["eval", "eval", "train", "train"]


def test_selecting_and_grouping():
    records = [{"a": k % 2, "b": k, "file": k, "written": k} for k in range(4)]
    assert [r["b"] for r in select(records, a=1)] == [1, 3]
    assert [r["b"] for r in select(records, b=(0, 3), a=(0, 1))] == [0, 3]
    assert {k: len(v) for k, v in group_by(records, lambda r: r["a"]).items()} == {0: 2, 1: 2}
    assert [r["b"] for r in newest_each(records, lambda r: r["a"])] == [2, 3]


def test_the_record_of_another_training_than_the_checkpoints_beside_it_is_left_out(tmp_path, capsys):
    digests = {}
    for seed in (1, 2):
        file = tmp_path / f"seed{seed}" / "prompt_learner" / "model.pth.tar-5"
        file.parent.mkdir(parents=True)
        torch.save({"state_dict": {"ctx": torch.full((4,), seed)}, "epoch": 5}, file)
        digests[seed] = {"files": {"prompt_learner/model.pth.tar-5": checkpoint_digest(file)}}
        write_run(tmp_path / f"seed{seed}", kind="train", seed=seed, weights=digests[seed])
    assert [record["seed"] for record in load_results(tmp_path)] == [1, 2]
    other = (tmp_path / "seed2" / "results.json").read_text()
    (tmp_path / "seed1" / "results.json").write_text(other)
    assert [record["file"].parent.name for record in load_results(tmp_path)] == ["seed2"]
    assert "of another run than prompt_learner/model.pth.tar-5 beside it" in capsys.readouterr().out
    (tmp_path / "seed1" / "prompt_learner" / "model.pth.tar-5").unlink()  # nothing left to compare with
    assert len(load_results(tmp_path)) == 2
