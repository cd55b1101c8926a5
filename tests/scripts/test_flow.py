"""The workflow: a killed grid ends with its table and repeats nothing, a dry run writes nothing, tables."""

import contextlib
import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dassl.utils import RunLock, UserError
from scripts import flow
from scripts.commands import COMMANDS
from scripts.flow import home, needs_of, unit_line, units_of
from scripts.grid import names_in, plan, read_table
from scripts.run import parse
from tests.conftest import ROOT
from tests.fixtures.interpreter import Python

ONE_EPOCH = ["--set", "OPTIM.MAX_EPOCH", "1", "TEST.OTHERS", "[toy_digits]"]
SMALL = """
protocol: base2new
methods: [CoOp]
presets: [paper]
datasets: {toy: [toy_shapes]}
seeds: [1, 2]
"""
RUNS = 14  # of a seed: zero-shot 4 (two templates), CoOp 3, its average 2, merges 2, CoOp_LMC 3


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders of data and output of a workflow in this process."""
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    return tmp_path / "output"


def units_from(words):
    args = flow.read([str(word) for word in words])
    return units_of(plan(args), args.by)


# A grid that is killed


def finished(output):
    """Of each finished run: which file its results and its log are, when they were written, and what they say."""
    files = [file for mark in output.rglob("results.json") for file in (mark, *mark.parent.glob("log*.txt*"))]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def running(output):
    """The workflow's processes, wherever they are: by the OUTPUT of their environment."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            numbers += [path.parent.name] if f"OUTPUT={output}\0".encode() in path.read_bytes() else []
    return numbers


def start(table, data, output, *more):
    env = os.environ | {"DATA": str(data), "OUTPUT": str(output), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "scripts/flow.py", str(table), "--workers", "2", *ONE_EPOCH, *more]
    return subprocess.Popen(
        words, cwd=ROOT, env=env, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory, toy_data):
    """(table, output, what was finished when it was ended for the second time, what later starts printed). First it is
    killed, then sent SIGTERM; either ends all its processes. Two processes at once."""
    output = tmp_path_factory.mktemp("output")
    table = output.parent / "small.yaml"
    table.write_text(SMALL)
    first = start(table, toy_data, output)
    while len(list(output.rglob("results.json"))) < 5 and first.poll() is None:
        time.sleep(0.02)
    assert first.poll() is None, first.communicate()[0]
    first.kill()
    first.communicate()
    while running(output):  # its jobs end their step, and then
        time.sleep(0.02)
    already = len(list(output.rglob("results.json")))
    second = start(table, toy_data, output)
    while len(list(output.rglob("results.json"))) == already and second.poll() is None:  # before that it may not hear
        time.sleep(0.02)
    second.terminate()
    printed, _ = second.communicate()
    assert second.returncode == 128 + signal.SIGTERM and "the same command goes on" in printed, printed
    assert "Traceback" not in printed and not running(output)
    before = finished(output)
    third = start(table, toy_data, output)
    printed += third.communicate()[0]
    assert third.returncode == 0, printed
    return table, output, before, printed


def test_a_killed_grid_ends_with_its_table_and_repeats_nothing(killed):
    _, output, before, printed = killed
    after = finished(output)
    assert 5 <= len([file for file in before if file.name == "results.json"]) < 2 * RUNS
    assert {file: after[file] for file in before} == before
    with open(output / "tables" / "base2new.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["method"].startswith("CoOp_LMC (paper")]
    assert rows and all(row["n"] == "2" for row in rows)


def test_what_is_finished_is_judged_by_its_results_not_by_times_or_flags(killed, monkeypatch, toy_data):
    """An older result is as good as a new one; a removed one is made again, alone, by its bash script."""
    table, output, _, _ = killed
    gone = next(output.glob("output_zsclip/**/test_new/**/seed2/results.json"))
    shutil.rmtree(gone.parent)
    stage1 = next(output.glob("output_coop/train_base/**/seed1/results.json"))
    os.utime(stage1)  # newer than all that was made of it
    before = finished(output)
    monkeypatch.setenv("OUTPUT", str(output))
    assert [all(job.finished for job in jobs) for jobs in units_from([table, *ONE_EPOCH]).values()] == [True, False]
    again = start(table, toy_data, output, "--by", "run")
    printed, _ = again.communicate()
    assert again.returncode == 0, printed
    after = finished(output)
    assert gone in after and {file: after[file] for file in before} == before
    (log,) = (output / "flow" / "logs").glob("zsclip_base2new_test/*.log")
    assert "toy_shapes" in log.read_text()


# A dry run


def test_a_dry_run_counts_and_writes_nothing(table, place, capsys):
    assert flow.main([str(table), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"toy_shapes seed 1: 0/{RUNS}\ntoy_shapes seed 2: 0/{RUNS}\n" in printed
    assert f"{2 * RUNS} runs in 2 jobs: 0 finished, 10 to do, 18 waiting" in printed  # zero-shot and CoOp need nothing
    assert not place.exists()


def test_a_dry_run_estimates_by_what_finished_runs_of_a_kind_took(table, place, capsys):
    """Two kinds have taken 10 and 4 s: what is left of them, on two workers."""
    units = units_from([table, "--by", "run"])
    for command, seconds in (("coop/base2new_train", 10), ("coop/base2base_test", 4)):
        step = next(job for (job,) in units.values() if job.command == command)
        step.folder.mkdir(parents=True)
        (step.folder / "results.json").write_text(f'{{"wall_s": {seconds}, "metrics": {{}}}}')
    assert flow.main([str(table), "--dry-run", "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 finished, 15 to do, 11 waiting" in printed
    assert "estimate: 14.0 s; about 7.0 s in 2 at once" in printed
    assert "24 runs are of kinds of which none is finished" in printed


def test_all_pairs_of_the_main_job_are_a_workflow(tmp_path):
    words = ["scripts/main_job.py", "--all", "--protocol", "robust", "toy_objects", "1", "--dry-run"]
    printed, _ = Python(words, OUTPUT=str(tmp_path / "output")).communicate()
    assert printed.startswith("snakemake is installed: all pairs run as its workflow")
    assert "runs in 1 jobs: 0 finished" in printed
    assert not (tmp_path / "output").exists()


# Jobs


TABLES = [(name, world) for name in names_in("tables") for world in ("toy", "public")]
TABLES.remove(("fewshot_mtil", "toy"))


@pytest.mark.parametrize(("name", "world"), TABLES)
def test_every_run_of_every_table_is_a_line_of_its_bash_script(name, world, place):
    """The line means the same run; what a run needs is made by a job before it, or by nobody."""
    path = ROOT / "configs" / "tables" / f"{name}.yaml"
    subject = [] if hasattr(read_table(path), "orders") else ["toy_objects" if world == "toy" else "imagenet"]
    args = flow.read([str(path), *subject, "1", *(["--data", "/data"] if world == "public" else [])])
    known, units = set(), units_of(plan(args), "run")
    needs = needs_of(units)
    for name, (step,) in units.items():
        line = unit_line(name, [step]).split("(", 1)[1].split(" && ")[0].split(") >> ")[0]
        bash, script, *words = shlex.split(line)
        assert (bash, ROOT / script) == ("bash", ROOT / f"scripts/{step.command}.sh") and (ROOT / script).is_file()
        (job,) = parse(step.command, words)
        assert job.program == step.program
        assert known.issuperset(needs[name])
        if COMMANDS[step.command].evaluates or COMMANDS[step.command].follows:
            assert needs[name]
        known.add(name)


def test_each_job_gets_one_free_gpu(tmp_path):
    """Three at once on GPUs 2, 5 and 7, then one more: each is given out again once it is free."""
    words = [sys.executable, ROOT / "scripts" / "gpu.py", "3", tmp_path, "sh", "-c"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "2,5,7"}
    held = [
        subprocess.Popen([*words, "echo $CUDA_VISIBLE_DEVICES; read end"], env=env, text=True, stdin=-1, stdout=-1)
        for _ in range(3)
    ]
    said = [process.stdout.readline().strip() for process in held]
    assert sorted(said) == ["2", "5", "7"]
    held[1].communicate("\n")
    done = subprocess.run([*words, "echo $CUDA_VISIBLE_DEVICES"], env=env, text=True, capture_output=True)
    assert done.stdout.strip() == said[1]
    for process in (held[0], held[2]):
        process.communicate("\n")


def test_a_second_workflow_in_a_folder_is_refused(table, place):
    with RunLock(home()), pytest.raises(UserError, match=rf"pid {os.getpid()}"):
        flow.main([str(table)])


# Tables


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds", "seed", "seeds"),
        ("[CoOp]", "[CoOpp]", "CoOp"),
        ("[paper]", "[papers]", "paper"),
        ("[toy_shapes]", "[toy_shape]", "toy_shapes"),
        ("[toy_shapes]", "some", "expected a list or all"),
        ("base2new", "base2old", "base2new"),
        ("base2new", "mtil", "orders"),
        ("seeds: [1, 2]", "", "seeds missing"),
        ("seeds: [1, 2]", "seeds: [one]", "whole number"),
        ("toy:", "toys:", "toy"),
        ("protocol: base2new", "sweeps: [tau]", "methods"),
    ],
)
def test_a_table_names_what_is_wrong_with_it(table, old, new, told):
    table.write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=told):
        units_from([table])


def test_a_wrong_command_line_is_refused(table, place):
    for words, told in (
        ([Path("none.yaml")], "configs/tables has ablations"),
        ([table, "--trainer", "MMA"], "leave out --trainer"),
        ([table, "--workers", "-1"], "--workers is -1"),
        ([table, "toy_shape"], "toy_shapes"),
        ([ROOT / "configs/tables/backbones.yaml"], "no toy datasets"),
        ([ROOT / "configs/tables/fewshot_mtil.yaml"], "no toy orders"),
    ):
        with pytest.raises(UserError, match=told):
            flow.main([str(word) for word in words])
    assert not place.exists()
