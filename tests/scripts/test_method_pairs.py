"""A method pair is said once, by its stage-2 class: a file and a yaml put it into jobs, tables, pages and imports."""

import os
import shlex
import subprocess
import sys

import pytest
import torch

from dassl.utils import UserError
from mergetune.stage2 import method_pairs
from scripts.commands import COMMANDS, stage1_command
from scripts.noxfile import copied
from scripts.plans import PROTOCOLS, find_pair, listed_pairs, pair_jobs
from tests.conftest import ROOT
from tests.fixtures import foreign_checkpoints
from tests.fixtures.runs import line_of, write_pairs

TRAINER = '''
from dassl.engine import TRAINER_REGISTRY
from mergetune.stage2 import MergeTune
from mergetune.trainers.coop import CoOp


@TRAINER_REGISTRY.register()
class A_Mine(MergeTune, CoOp):
    """Mine."""

    stage1 = CoOp
'''
RECIPE = """
_BASE_: ../CoOp_LMC/paper.yaml
PRESET: mine
TRAINER: {LMC: {LAMBDA: 2.0}}
"""
SCRIPT = """
import sys
sys.path[:0] = [".", "Dassl.ProGrad.pytorch"]
from mergetune import import_checkpoint, report
from scripts import run
from scripts.jobs import Job
from scripts.workers import attempt
where = {"DATASET": "caltech101", "SEED": "1", "CFG": "mine", "SHOTS": "16"}
print("job:", attempt(Job("A_Mine/base2new_train", where)))
report.main([sys.argv[1], "--html", sys.argv[1] + "/page.html"])
import_checkpoint.main([sys.argv[2], "--out", sys.argv[1] + "/imported"])
sys.exit(run.main(["A_Mine/base2new_train", "toy_shapes", "1", "--", "OPTIM.MAX_EPOCH", "3"]))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the commands of a copy of the clone say that has one trainer file and one yaml more."""
    place = tmp_path_factory.mktemp("pair")
    clone = copied(ROOT, place / "clone")
    (clone / "mergetune" / "trainers" / "a_mine.py").write_text(TRAINER)
    (clone / "configs" / "trainers" / "A_Mine").mkdir()
    (clone / "configs" / "trainers" / "A_Mine" / "mine.yaml").write_text(RECIPE)
    runs, file = place / "runs", place / "prompt_learner" / "model.pth.tar-100"
    write_pairs(runs, {"toy_a": [(70, 50)]}, trainer="CoOp")
    write_pairs(runs, {"toy_a": [(72, 54)]}, trainer="A_Mine", preset="mine")
    file.parent.mkdir()
    torch.save({"state_dict": foreign_checkpoints.coop(foreign_checkpoints.Sizes()), "epoch": 100}, file)
    env = os.environ | {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix, "DRY_RUN": "1", "OUTPUT": str(place / "out")}
    commands = {
        "job": ["bash", "train.sh", "--trainer", "A_Mine", "toy_shapes", "1"],
        "others": [sys.executable, "-c", SCRIPT, str(runs), str(file)],
    }
    texts = {}
    for name, words in commands.items():
        done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        texts[name] = done.stdout
    return texts | {"page": (runs / "page.html").read_text(), "table": (runs / "tables" / "base2new.csv").read_text()}


def test_a_new_pair_is_a_job_on_the_stage_1_that_it_names(said):
    lines = [line for line in said["job"].splitlines() if not line.startswith("export")]
    usual = [step.command for step in pair_jobs("CoOp", "base2new", "toy_shapes", 1)]
    usual = usual[: usual.index("coop_LMC/base2new_train_coop")]
    scripts = [words[1].removeprefix("scripts/").removesuffix(".sh") for words in map(shlex.split, lines)]
    assert "bash scripts/coop/base2new_train.sh toy_shapes 1" in lines
    assert "python scripts/run.py A_Mine/base2new_train toy_shapes 1" in lines
    assert scripts[: len(usual)] == usual
    assert any(line.startswith("python -m mergetune.path_card") and "A_Mine" in line for line in lines)


def test_its_command_continues_its_stage_1_and_has_its_recipe(said):
    (line,) = [line for line in said["others"].splitlines() if line.startswith("python train.py")]
    words = shlex.split(line)
    assert words[words.index("--trainer") + 1] == "A_Mine"
    assert words[words.index("--config-file") + 1] == "configs/trainers/A_Mine/mine.yaml"
    assert "/output_coop/train_base/toy_shapes/" in words[words.index("--resume-coop") + 1].replace("out/", "/")


def test_it_stands_in_the_table_and_on_the_page_beside_its_stage_1(said):
    assert line_of(said["others"], "A_Mine (mine)")
    assert "A_Mine (mine)" in said["table"] and "A_Mine (mine)" in said["page"]


def test_an_imported_stage_1_is_continued_by_each_stage_2_on_it(said):
    lines = [line for line in said["others"].splitlines() if line.startswith("Continue it with: ")]
    assert [line.split("--trainer ")[1].split()[0] for line in lines] == ["CoOp_LMC", "A_Mine"]


def test_a_process_that_is_given_a_job_of_it_knows_its_command(said):
    (line,) = [line for line in said["others"].splitlines() if line.startswith("job: ")]
    assert line.startswith("job: caltech101 seed 1: A_Mine/base2new_train: Caltech101: the data root")


# What the registered classes say


def test_a_pair_is_asked_for_by_its_name_its_stage_1_or_its_stage_2():
    for pair in listed_pairs():
        assert find_pair(pair.name) == find_pair(pair.stage1) == find_pair(pair.stage2) == pair
        for protocol in set(PROTOCOLS) - {*pair.protocols}:
            with pytest.raises(UserError, match=f"--trainer of protocol {protocol} .*{pair.name}"):
                find_pair(pair.name, protocol)
    named = [pair.name for pair in listed_pairs() if "base2new" in pair.protocols]
    assert named == ["CoOp", "KgCoOp", "MMA", "PromptKD"]


def test_what_a_command_continues_is_the_stage_1_of_its_trainers_class():
    pairs = method_pairs()
    continuing = {name: command for name, command in COMMANDS.items() if command.stage1}
    assert {command.trainer for command in continuing.values()} == {*pairs, "CoOp_Average"}
    for command in continuing.values():
        first = COMMANDS[stage1_command(command)].trainer
        assert first == (pairs[command.trainer].stage1 if command.trainer in pairs else "CoOp")
