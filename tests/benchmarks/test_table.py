"""The one table of all benchmarks: what is in it, what fails it. No timing."""

import itertools
import json

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import bank, table
from tests.benchmarks.table import Row
from tests.benchmarks.world import World


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """`told(row, faults, *words)`: the exit status with one benchmark that says so, its JSON, what was printed."""

    def go(row, faults, *words):
        def gather(quick, folder):
            print("its own table")
            return [row], faults

        monkeypatch.setattr(table, "benchmarks", lambda: {"one": gather})
        status = command.main([*words, "--out", str(tmp_path)])
        return status, json.loads((tmp_path / "all.json").read_text()), capsys.readouterr()

    return go


def test_every_benchmark_is_found():
    assert table.benchmarks().keys() >= {"step", "fusion", "bank", "classes", "preflight"}


def test_the_table_and_its_json(told):
    status, found, said = told(Row("CoOp bank", "s", 0.5, 50, least=25), [])
    assert status == 0 and found["missed"] == [] and not found["quick"]
    assert found["rows"] == [
        {"benchmark": "one", "name": "CoOp bank", "unit": "s", "ours": 0.5, "plain": 50, "least": 25, "ratio": 100.0,
         "met": True}
    ]  # fmt: skip
    lines = said.out.splitlines()
    assert lines[0].split() == ["ours", "plain", "way", "ratio", "expected"]
    assert lines[1].split() == ["one", "CoOp", "bank", "500", "ms", "50.00", "s", "100", ">=", "25", "yes"]
    assert "its own table" in said.err and "its own table" not in said.out


def test_a_ratio_below_its_floor_fails(told):
    status, found, said = told(Row("memory", "MB", 2000, 3000, least=3), [])
    assert status == 1 and found["missed"] == ["one: memory"] and found["rows"][0]["met"] is False
    assert "below what is expected: one: memory" in said.out and ">= 3 no" in said.out


def test_nothing_is_expected_where_no_floor_is_declared_and_faults_always_fail(told):
    status, found, _ = told(Row("memory", "MB", 3000, 2000), [], "--quick")
    assert status == 0 and found["quick"] and found["rows"][0]["met"] is None
    status, found, said = told(Row("memory", "MB", 3000, 2000), ["they differ"], "--quick")
    assert status == 1 and found["faults"] == ["one: they differ"] and "error: one: they differ" in said.out


def test_an_unknown_benchmark_is_refused(told, capsys):
    with pytest.raises(SystemExit):
        told(Row("", "s", 1, 1), [], "--only", "two")
    assert "two" in capsys.readouterr().err


def test_small_results_lie_beside_those_of_the_full_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    folders = [command.parse(words, ["one"]).out for words in ([], ["--quick"])]
    assert folders == [tmp_path / "benchmarks", tmp_path / "benchmarks" / "quick"]


def test_views_of_images_decoded_once_are_those_of_the_plain_way(monkeypatch):
    rows, faults = bank.of_loading(2, repeats=1, images=6)
    assert faults == [] and [row.name for row in rows] == [f"2 views of 6 JPEGs, {n} workers" for n in (0, 2)]
    sums = itertools.count()
    monkeypatch.setattr(bank, "load", lambda pixels, work, workers, busy: busy.append(1.0) or next(sums))
    assert bank.of_loading(2, repeats=1, images=6)[1] == [f"other numbers with {n} workers" for n in (0, 2)]


def test_the_bank_gives_the_features_of_the_images(tmp_path):
    world = World(tmp_path, "small", batch=4, classes=3, test_batch=6).write()
    rows, faults = bank.measure(world, repeats=2, threads=1, least=bank.LEAST)
    assert faults == [] and [row.least for row in rows] == [0.8, 50]
    assert all("6 images" in row.name and row.ours > 0 and row.plain == rows[0].plain for row in rows)
