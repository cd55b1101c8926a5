"""The main job: a table and figures, finished work never repeated, a killed job continued."""

import csv
import json
import os
import shlex
import shutil
import signal
import time

import pytest
import torch

from dassl.utils import UserError
from datasets.toy.world import world_digest
from mergetune.path_card import LEG_POINTS
from mergetune.report import main as report
from scripts.grid import plan
from scripts.jobs import settle
from scripts.main_job import build_parser, report_if_any, run_job
from scripts.plans import pair_jobs
from scripts.run import parse
from scripts.workers import run_one_job
from tests.conftest import ROOT
from tests.fixtures.interpreter import Python, group

WORDS = ["scripts/main_job.py", "toy_shapes", "1", "--set", "OPTIM.MAX_EPOCH", "2"]
WORDS += ["FEATURES.VIEWS", "2", "TEST.OTHERS", "[toy_digits]"]
# two epochs are not the recipe, and the table says so
CHANGED = "changed: OPTIM.MAX_EPOCH"
PRESETS = [f"CoOp_LMC ({name}, {CHANGED})" for name in ("continued", "paper", "released")]
PRESETS.append(PRESETS[-1].replace(")", ", last epoch)"))
MERGED = [f"CoOp ({CHANGED}) + {name} (density {density}, scale 1)" for name, density in (("TIES", 0.2), ("DARE", 0.1))]
ROWS = ["ZeroshotCLIP", "ZeroshotCLIP (a photo of a {}, a type of shape.)", f"CoOp ({CHANGED})"]
ROWS += [f"CoOp average ({CHANGED})", *MERGED, *PRESETS]


def marks(output):
    """When each finished run below a folder was finished."""
    return {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}


@pytest.fixture(scope="module")
def job(toy_data, tmp_path_factory):
    """The job on one data set and seed, ended twice in the middle, by signals to its main process alone:
    (output folder, marks when it was ended, printed, {signal: (exit status, standard error, processes left)}, DATA)."""
    output = tmp_path_factory.mktemp("output")
    env = {"DATA": str(toy_data), "OUTPUT": str(output)}
    ends = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        finished = len(marks(output))
        process = Python(WORDS, session=True, **env)
        while len(marks(output)) < finished + 2 and process.returncode is None:
            time.sleep(0.05)
        process.send_signal(number)
        process.wait()
        for _ in range(600):  # at most a minute, if one of them does not end
            if not (left := group(process.pid)):
                break
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        ends[number] = process.returncode, process.stderr.read(), left
    before = marks(output)
    last = Python(WORDS, **env)
    printed, said = last.communicate()
    assert last.returncode == 0, printed + said
    return output, before, printed, ends, str(toy_data)


def test_workers_end_with_their_job_which_says_how_to_go_on(job):
    (killed, _, left), (stopped, said, left_too) = (job[3][number] for number in (signal.SIGKILL, signal.SIGTERM))
    assert (killed, stopped) == (-signal.SIGKILL, 128 + signal.SIGTERM)
    assert "the same command goes on" in said and "Traceback" not in said
    assert left == left_too == []


def test_failures_are_said_first_and_no_report_is_made_of_nothing(toy_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DATA", str(toy_data))
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    words = ["caltech101", "toy_digits", "1", "--workers", "1", "--set", "DATASET.NUM_SHOTS", "999"]
    assert run_job(build_parser().parse_args(words)) == 1
    said = capfd.readouterr()
    failed = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert [line.split()[1] for line in failed] == ["caltech101", "toy_digits"]
    assert "no folder" in failed[0] or "caltech-101" in failed[0]
    assert "999 shots asked for" in failed[1]
    assert "No finished run" not in said.out + said.err and not (tmp_path / "tables").exists()
    assert "2 failed" in said.out


@pytest.mark.parametrize("pair", ["OPTIM.RATE 1", "OPTIM.LR fast", "DATASET.NUM_SHOTS few"])
def test_a_key_that_no_run_can_take_is_said_before_the_first_run(tmp_path, monkeypatch, pair):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=pair.split()[0]):
        run_job(build_parser().parse_args(["toy_shapes", "1", "--set", *pair.split()]))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("words", [["toy_shapes", "²"], ["toy_shapes", "1", "--workers", "-1"]])
def test_numbers_of_the_job_are_whole_and_positive(words):
    with pytest.raises(UserError, match="²|--workers is -1"):
        run_job(build_parser().parse_args(words))


def test_a_report_that_fails_is_said_and_changes_the_exit_status(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUTPUT", str(job[0]))
    cells = plan(build_parser().parse_args(["toy_shapes", "1"]))
    (tmp_path / "file").touch()
    assert report_if_any(cells, lambda: report([str(job[0]), "--out", str(tmp_path / "file")]))
    assert capsys.readouterr().err.startswith(f'error: Cannot write "{tmp_path}/file/tables/')
    assert report_if_any(cells, lambda: None) == 0


def test_what_was_finished_is_not_repeated(job):
    output, before, *_ = job
    after = marks(output)
    assert 3 <= len(before) < len(after)
    assert all(after[path] == when for path, when in before.items())


@pytest.fixture
def steps(job, tmp_path, monkeypatch):
    """`steps(*words)`: the job's steps with these keys, in a copy of its folder elsewhere."""
    output = shutil.copytree(job[0], tmp_path / "moved")
    monkeypatch.setenv("OUTPUT", str(output))
    monkeypatch.chdir(ROOT)

    def of(*words):
        monkeypatch.setenv("DATA", job[4])
        cells = plan(build_parser().parse_args([*WORDS[1:], *words]))
        return [step for cell in cells for step in cell]

    return of


def test_what_was_run_otherwise_is_said_before_anything_begins_and_goes_with_what_came_of_it(steps):
    settle(steps())
    other = steps("OPTIM.MAX_EPOCH", "3")
    with pytest.raises(UserError, match="4 of 22 .*: OPTIM.MAX_EPOCH 2, asked for 3. --overwrite .* another OUTPUT"):
        settle(other)
    assert all(step.finished for step in other)
    settle(other, overwrite=True)
    kept = {step.command.split("/")[0] for step in other if step.finished}
    assert kept == {"zsclip"}


def test_weights_that_were_made_anew_make_another_run_of_what_came_of_them(steps):
    stage1 = next(step.folder for step in steps() if step.command == "coop/base2new_train")
    for file in stage1.glob("*/model*.pth.tar*"):
        checkpoint = torch.load(file)
        next(iter(checkpoint["state_dict"].values())).add_(1)
        torch.save(checkpoint, file)
    with pytest.raises(UserError, match=f"{file} is not of the run of .*results.json"):
        settle(steps())
    facts = json.loads((stage1 / "results.json").read_text())
    del facts["weights"]  # as if it had written them
    (stage1 / "results.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="9 of 22 .*RESUME_COOP .* holds something else.*parents .*, asked for"):
        settle(steps())


def test_an_emptied_result_is_no_finished_run(steps):
    first, *others = steps()
    (first.folder / "results.json").write_text("")
    settle(steps())
    assert not first.finished and all(step.finished for step in others)


def test_a_path_card_is_completed_where_stage_1_has_moved_with_it(job, steps):
    step = next(step for step in steps() if step.card)
    card = step.folder / "path.json"
    whole = json.loads(card.read_text())
    card.write_text(json.dumps({key: value for key, value in whole.items() if key != "others"}))
    assert not step.finished
    before = job[0].rename(job[0].with_name("gone"))
    try:
        run_one_job(step)
    finally:
        before.rename(job[0])
    assert step.finished and json.loads(card.read_text())["others"]["accuracy"] == whole["others"]["accuracy"]


def test_every_row_of_the_table_is_there(job):
    output, _, printed, *_ = job
    with open(output / "tables" / "base2new.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(ROWS)
    assert all(name in printed for name in ROWS)
    assert "—" not in printed.split("—:")[0]  # no missing cell above the legend
    assert (output / "tables" / "base2new.md").is_file()


def test_each_run_records_the_toy_world(job):
    digests = {json.loads(path.read_text())["world_digest"] for path in marks(job[0])}
    assert digests == {world_digest()}


def test_a_figure_for_each_stage_2_family(job):
    figures = sorted(path.name for path in (job[0] / "figures").glob("*.png"))
    assert {"base_others.png", "epochs_base2new_CoOp.png"} < set(figures) and len(figures) == 8
    for kind in ("path", "change"):
        assert sum(name.startswith(f"{kind}_CoOp") for name in figures) == 3


def test_the_path_ends_where_the_evaluations_are(job):
    """The card's middle is our run's accuracy, its end stage 1's: they come from other code paths."""
    output = job[0]

    def result(pattern):
        return json.loads(next(output.glob(pattern)).read_text())

    def of_others(entry):
        return sum(100 * row["correct"] / row["total"] for row in entry["sets"].values()) / len(entry["sets"])

    card = json.loads(next(output.glob("**/shots_16_8.0_0.5/**/path.json")).read_text())
    assert len(card["t"]) == 2 * LEG_POINTS - 1 and card["t"][0] == 0 and card["t"][-1] == 2
    middle = card["t"].index(1.0)
    for subset in ("base", "new"):
        ours = result(f"**/evaluate/test_{subset}/**/shots_16_8.0_0.5/**/results.json")
        stage1 = result(f"output_coop/evaluate/test_{subset}/**/results.json")
        assert card[subset]["accuracy"][middle] == pytest.approx(ours["metrics"]["accuracy"], abs=1e-4)
        assert card[subset]["accuracy"][-1] == pytest.approx(stage1["metrics"]["accuracy"], abs=1e-4)
    ends = [of_others(run["others"]) for run in (result("output_zsclip/**/vit_b16/**/results.json"), ours, stage1)]
    assert [card["others"]["accuracy"][k] for k in (0, middle, -1)] == pytest.approx(ends, abs=1e-4)


def test_a_dry_run_prints_lines_that_scripts_take_and_runs_nothing(clone, tmp_path):
    words = ("bash", "train.sh", "toy_shapes", "1", "--check")
    lines = clone(*words, output=tmp_path / "out", DRY_RUN="1").stdout.splitlines()
    assert lines[0] == f"export OUTPUT={tmp_path / 'out'}" and not (tmp_path / "out").exists()
    scripts = [words[1:] for words in map(shlex.split, lines) if words[0] == "bash"]
    assert len(scripts) == len(pair_jobs("CoOp", "base2new", "toy_shapes", 1))
    for path, *words in scripts:
        parse(path.removeprefix("scripts/").removesuffix(".sh"), words)


@pytest.mark.parametrize("words", [["toy_shape"], ["--trainer", "CoOpp"], ["--data", "."]])
def test_unknown_names_are_refused_before_anything_runs(words, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    process = Python(["scripts/main_job.py", *words])
    said = process.communicate()[1]
    assert process.returncode == 1
    assert said.startswith("error: ")
    assert not (tmp_path / "out").exists()
