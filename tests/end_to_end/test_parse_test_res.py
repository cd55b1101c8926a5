"""Logs to mean and deviation, for the logs of every Dassl."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

TOOLS = ROOT / "Dassl.ProGrad.pytorch" / "tools"

RESULT = "=> result\n* total: 1,649\n* correct: 1,372\n* accuracy: {0}%\n* error: {1}%\n* macro_f1: {0}%\n"
UPSTREAM = "epoch [1/6] batch [2/5] loss 1.3504 (1.3557) acc 37.5 lr 1.0e-05\n"
FORK = "epoch [1/6][2/5]\tloss 1.3504 (1.3557)\tacc 37.5000 (31.2500)\n"
EARLIER = "Evaluate on the *val* set\n" + RESULT.format("11.1", "88.9")


def parse(*args):
    return subprocess.run(
        [sys.executable, str(TOOLS / "parse_test_res.py"), *map(str, args)], capture_output=True, text=True
    )


def write_runs(folder, end, accuracies, batch=UPSTREAM):
    for seed, accuracy in enumerate(accuracies, start=1):
        run = folder / f"seed{seed}"
        run.mkdir(parents=True)
        error = f"{100 - float(accuracy):.2f}"
        (run / "log.txt").write_text(batch + EARLIER + end + RESULT.format(accuracy, error) + "Elapsed: 0:00:02\n")


@pytest.mark.parametrize(
    ("end", "batch"),
    [
        ("Finish training\n", UPSTREAM),
        ("Finished training\n", FORK),
        ("Finish training\nFinished training\n", UPSTREAM),
        ("Finished training in KgCoOp_COOPLMC\n", FORK),
    ],
)
def test_every_dialect(tmp_path, end, batch):
    write_runs(tmp_path, end, ["83.2", "25.00"], batch)
    (tmp_path / "table.csv").touch()
    (tmp_path / ".cache").mkdir()
    done = parse(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"Parsing files in {tmp_path}\n"
        f"file: {tmp_path}/seed1/log.txt. accuracy: 83.20%. \n"
        f"file: {tmp_path}/seed2/log.txt. accuracy: 25.00%. \n"
        f"===\nSummary of directory: {tmp_path}\n* accuracy: 54.10% +- 29.10%\n===\n"
    )


def test_interval_and_keyword(tmp_path):
    write_runs(tmp_path, "Finish training\n", ["80.0", "84.0"])
    assert "* accuracy: 82.00% +- 2.77%" in parse(tmp_path, "--ci95").stdout
    assert "* error: 18.00% +- 2.00%" in parse(tmp_path, "--keyword", "error").stdout
    assert "* macro_f1: 82.00% +- 2.00%" in parse("--keyword", "macro_f1", tmp_path).stdout


def test_logs_without_training(tmp_path):
    write_runs(tmp_path, "", ["70.0"])
    without = parse(tmp_path)
    assert without.returncode != 0
    assert f"Nothing found in {tmp_path}" in without.stderr
    assert "* accuracy: 70.00% +- 0.00%" in parse(tmp_path, "--test-log").stdout


def test_several_experiments(tmp_path):
    write_runs(tmp_path / "a", "Finish training\n", ["60.0", "62.0"])
    write_runs(tmp_path / "b", "Finished training\n", ["40.0"])
    lines = parse(tmp_path, "--multi-exp").stdout.splitlines()
    assert [line for line in lines if line.startswith("* ")] == [
        "* accuracy: 61.00% +- 1.00%",
        "* accuracy: 40.00% +- 0.00%",
        "* accuracy: 50.50%",
    ]
    assert lines[-2] == "Average performance"


def test_a_resumed_run_counts_once_with_its_last_result(tmp_path):
    write_runs(tmp_path, "Finish training\n", ["60.0", "50.0"])
    (tmp_path / "seed1" / "log.txt").write_text(UPSTREAM)
    second = "Finish training\n" + RESULT.format("66.0", "34.0")
    (tmp_path / "seed1" / "log.txt-2026-01-02-03-04-05").write_text(second)
    assert "* accuracy: 58.00% +- 8.00%" in parse(tmp_path).stdout
    (tmp_path / "seed1" / "log-2026-01-01-03-04-05.txt").write_text(second.replace("66.0", "1.0"))  # an earlier one
    assert "* accuracy: 58.00% +- 8.00%" in parse(tmp_path).stdout


def test_unfinished_and_missing_runs_are_named(tmp_path):
    write_runs(tmp_path, "Finish training\n", ["60.0", "50.0"])
    (tmp_path / "seed2" / "log.txt").write_text(UPSTREAM)
    unfinished = parse(tmp_path)
    assert "* accuracy: 60.00% +- 0.00%" in unfinished.stdout
    assert "seed2" in unfinished.stderr
    (tmp_path / "seed2" / "log.txt").unlink()
    missing = parse(tmp_path)
    assert missing.returncode == 1
    assert missing.stderr == f'error: No file found at "{tmp_path}/seed2/log.txt"\n'
    assert "is not a folder" in parse(tmp_path / "none").stderr
    assert "Nothing found" in parse(tmp_path / "seed1", "--multi-exp").stderr


def test_tools_train_is_the_same_program(tmp_path):
    command = [sys.executable, str(TOOLS / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--dataset-config-file" in done.stdout
