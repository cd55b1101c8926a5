"""tests/gpu.sh: refused without a card; with --device cpu every check goes through here, all but CUDA itself."""

import math
import os
import subprocess
import sys

import pytest
import torch

from dassl.clip import compiling
from tests.conftest import ROOT
from tests.fixtures import any_trainer, distributed_worker
from tests.fixtures.interpreter import Python
from tests.gpu import sizes, trainers
from tests.gpu.__main__ import CHECKS, COLUMNS, check, main
from tests.gpu.row import Place, Row, apart, too_far

QUICK = ["--device", "cpu", "--quick"]
NO_CARD = {"CUDA_VISIBLE_DEVICES": "", "VIRTUAL_ENV": sys.prefix}


def rows_of(path):
    """The cells of the table in a file, below its head."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert tuple(cells[0]) == COLUMNS and set("".join(cells[1])) == {"-", ":"}
    return cells[2:]


def test_without_a_card_it_is_refused_in_one_line(tmp_path):
    env = os.environ | NO_CARD | {"OUTPUT": str(tmp_path)}
    done = subprocess.run(["bash", ROOT / "tests/gpu.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no CUDA device")
    process = Python(["-m", "tests.gpu"], **NO_CARD, OUTPUT=str(tmp_path))  # with a card that PyTorch cannot use
    said = process.communicate(timeout=120)
    assert process.returncode == 1 and not said[0] and said[1].count("\n") == 1
    assert said[1].startswith("error: no CUDA device that PyTorch ") and not any(tmp_path.iterdir())


def test_every_check_goes_through_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")  # no C++ is compiled
    names = ["CoOp", "CoOp_Average", "MMA_LMC", "ConDU", "ZeroshotCLIP", "Vanilla"]
    assert main([*QUICK, "--trainers", *names, "--out", str(tmp_path / "gpu.md")]) == 0
    rows = rows_of(tmp_path / "gpu.md")
    assert {row[-1] for row in rows} == {"yes"}
    once = ("ZeroshotCLIP", "Vanilla")  # they have no other precision
    modes = {name: ("fp32",) if name in once else ("fp32", "amp", "bf16") for name in names}
    stepped = [row[1] for row in rows if row[0] == "a trainer's steps"]
    assert stepped == [f"{name}, {mode}" for name in names for mode in modes[name]]
    alone = [row for row in rows if row[4] and row[0] != "two processes" and "COMPILE" not in row[1]]
    exact = [row[4] for row in alone if row[1].endswith("fp32")]
    half = [float(row[4]) for row in alone if row[1].endswith(("amp", "bf16"))]
    assert len(exact) >= 16 and set(exact) == {"0.0e+00"}
    assert len(half) >= 16 and min(half) > 0 and max(half) < 0.15
    what = {row[0].rpartition(": ")[2] for row in rows}
    assert what == {"a trainer's steps", "resume to the bit", "one process", "two processes", "peak-memory line",
                    "a tower", "a step", "20 classes", "a fusion", "a feature bank"}  # fmt: skip


def test_a_check_that_fails_is_a_row_and_the_others_run(tmp_path, monkeypatch, capsys):
    def ends(place):
        yield Row("towers", "first")
        raise RuntimeError("no | kernel\nfor this")

    monkeypatch.setattr(sizes, "towers", ends)
    assert main([*QUICK, "--only", "towers", "fusion", "--out", str(tmp_path / "new" / "gpu.md")]) == 1
    rows = rows_of(tmp_path / "new" / "gpu.md")
    assert rows[1] == ["towers", "ended early", "", "", "", "no: RuntimeError: no / kernel"]
    assert [row[-1] for row in rows] == ["yes", "no: RuntimeError: no / kernel", "yes", "yes"]
    assert "4 rows, 1 of them" in capsys.readouterr().out


def test_a_trainer_that_computes_something_else_fails_alone(tmp_path, monkeypatch):
    played = trainers.played

    def wrong(trainer, name):
        logits, losses, seconds = played(trainer, name)
        off = trainer.precision.mode == "bf16"
        return logits, losses * math.nan if off else losses, seconds

    monkeypatch.setattr(trainers, "played", wrong)
    rows = list(trainers.trainers(Place(torch.device("cpu"), tmp_path, True, ("CoOp", "NoSuch"))))
    assert [row.setting for row in rows if not row.fault] == ["CoOp, fp32", "CoOp, amp"]
    assert rows[2].fault == "differs by inf, allowed 0.15"
    assert len(rows) == 6 and all("NoSuch" in row.fault for row in rows[3:])


def test_every_registered_trainer_is_known():
    known = {*any_trainer.CONFIGS, *distributed_worker.OTHERS, *trainers.FROM_SCRATCH} - {"WholeNorm"}
    assert known == set(trainers.every_trainer()) and len(known) >= 23
    cuda = Place(torch.device("cuda"), ROOT)
    assert trainers.modes("CoOp", cuda) == ("fp32", "fp16", "amp", "bf16")
    assert "fp16" not in trainers.modes("ConDU", cuda) and trainers.modes("Vanilla", cuda) == ("fp32",)
    assert all(callable(check(name)) for name in CHECKS)


@pytest.mark.parametrize(
    ("ours", "far"),
    [([3.0, 4.0], 0.0), ([3.0, 5.0], 0.2), ([math.nan, 4.0], math.inf), ([3.0], math.inf)],
)
def test_differences_are_relative_and_never_nan(ours, far):
    found = apart(torch.tensor(ours), torch.tensor([3.0, 4.0]))
    assert found == pytest.approx(far)
    assert bool(too_far(found, 1e-3)) == (far > 1e-3) and too_far(math.nan, 1.0)
