"""The fusion benchmark runs and its two ways agree. No timing."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import fusion
from tests.conftest import ROOT


def test_benchmark_runs_and_its_ways_agree(tmp_path):
    out = tmp_path / "fusion.json"
    words = ("--model", "tiny", "--tasks", "3", "--repeats", "1", "--threads", "1", "--out", out)
    # a process of its own: a forked one's pools do not end with it
    process = subprocess.run([sys.executable, "tests/benchmarks/fusion.py", *words], cwd=ROOT, capture_output=True)
    assert process.returncode == 0, process
    found = json.loads(out.read_text())
    assert [row["tasks"] for row in found["rows"]] == [2, 3] and found["faults"] == [] and found["met"] == {}
    for row in found["rows"]:
        assert row["differences"]["masks"] == 0 and row["differences"]["scales"] <= 1e-6
        assert 23488 * (4 + row["tasks"] / 8) / 1e6 <= row["disk_mb"] <= 0.13  # 4 bytes and a bit a task, a header
        assert min(row[key] for key in ("absorb_s", "copy_s", "plain_s", "write_s", "expert_s", "clone_s")) > 0


def test_targets_stand_beside_the_figures():
    row = {"faster": 12, "absorb_s": 3, "copy_s": 0.1, "extra_mb": 900, "expert_s": 0.5, "clone_s": 0.1}
    found = {name: fusion.judge(name, row) for name in fusion.TARGETS}
    assert {name: fine for name, (_, fine) in found.items()} == {
        "faster": True, "copies": False, "extra_mb": True, "clones": False,
    }  # fmt: skip
    assert found["copies"][0] == pytest.approx(30)


def test_tasks_that_are_not_there_are_refused(capsys):
    for words in (["--tasks", "1"], ["--tasks", "4", "--plain", "5"]):
        with pytest.raises(SystemExit):
            fusion.parse(words)
        assert "expected" in capsys.readouterr().err
