"""Every command answers --help, in a process of its own, without PyTorch; late imports are as good as early ones."""

import os
import subprocess
import sys

import pytest

import train
from scripts import run
from tests.conftest import ROOT

ENGINE = ROOT / "Dassl.ProGrad.pytorch"
HEAVY = {"torch", "torchvision", "clip", "open_clip", "matplotlib", "sklearn", "tensorboard", "transformers"}
WORKERS = {"datasets/matlab.py"}  # started by a function of its own module only


def python_commands():
    """The words behind `python` of each file that can be run: train.py, python -m PACKAGE.NAME, a path."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        if place.parts[0] in ("tests", ".venv", "build") or str(place) in WORKERS:
            continue
        if '\nif __name__ == "__main__":' not in path.read_text(encoding="utf-8"):
            continue
        home = ENGINE if ENGINE in path.parents else ROOT
        module = ".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__main__")
        yield ("-m", module) if (path.parent / "__init__.py").is_file() and path.parent != ROOT else (str(place),)


def shell_commands():
    """Scripts that are run, not sourced, by what they do: most hand their name to scripts/run.sh."""
    kinds = {}
    for path in (ROOT / "train.sh", *sorted((ROOT / "scripts").rglob("*.sh"))):
        name = str(path.relative_to(ROOT))
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line for line in lines if not line.startswith("#"))
        if first.startswith("#!"):
            kinds.setdefault(code.replace(name.removeprefix("scripts/").removesuffix(".sh"), "NAME"), []).append(name)
    return list(kinds.values())


def help_of(*words):
    """What a command prints with --help; the modules that it imports are watched by Python itself."""
    env = {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(ENGINE), "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run([*words, "--help"], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0 and not said, done.stderr[-2000:]
    assert "encodings" in imported or words[0] == "bash"
    assert not {name.split(".")[0] for name in imported} & HEAVY
    return done.stdout


@pytest.mark.parametrize("words", [*python_commands()], ids=" ".join)
def test_python_help_needs_no_torch(words):
    assert help_of(sys.executable, *words).lower().startswith(("usage: ", "run one command"))


@pytest.mark.parametrize("names", shell_commands(), ids=lambda names: names[0])
def test_shell_help_needs_no_torch(names, capsys):
    assert any(word in help_of("bash", names[0]) for word in ("usage: ", "bash ", "python "))
    for name in names[1:]:
        try:
            status = run.main([name.removeprefix("scripts/").removesuffix(".sh"), "--help"])
        except SystemExit as ended:  # by the module whose words these are
            status = ended.code
        assert status == 0 and capsys.readouterr().out.startswith(f"usage: {name} ")


def refused_in_one_line(*words, **env):
    """The one line that a command ends with."""
    done = subprocess.run(words, cwd=ROOT, env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("command", ["train.py --help", "scripts/run.py x", "-m mergetune.merge", "-m datasets links"])
def test_a_python_without_the_packages_says_how_to_install_them(command):
    line = refused_in_one_line(sys.executable, "-S", *command.split())
    assert "no torch, " in line and "pip install -r requirements.txt" in line


def test_scripts_run_through_links_and_name_an_environment_that_is_gone(tmp_path):
    for name in ("train.sh", "scripts/coop/base2new_train.sh"):
        link = tmp_path / name.rpartition("/")[2]
        link.symlink_to(ROOT / name)
        line = refused_in_one_line("bash", link, "toy_shapes", "1", VIRTUAL_ENV=str(tmp_path / "gone"))
        assert f"VIRTUAL_ENV is {tmp_path}/gone, which has no bin/python" in line


def test_an_old_python_makes_no_environment(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("train.sh", "scripts/setup.sh", "scripts/python.sh"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    assert "no Python 3.10 or newer" in refused_in_one_line("bash", tmp_path / "train.sh", PYTHON="false")
    assert not (tmp_path / ".venv").exists()


def test_errors_and_registries_need_no_torch():
    code = """
import sys, pickle
from dassl.utils import UserError, errors_in_one_line, read_json
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
import dassl.engine
assert "torch" not in sys.modules
assert {"Vanilla", "SourceOnly", "SupBaseline", "FixMatch"} <= {*TRAINER_REGISTRY.registered_names()}
assert "torch" in sys.modules and "torchvision" not in sys.modules
assert dassl.engine.trainer.TrainerX is dassl.engine.TrainerX
assert {"TrainerX", "trainer", "da"} <= {*dir(dassl.engine)}
exec("from dassl.engine import *; from dassl.utils import *; from dassl.data import *; from dassl.clip import *")
assert TrainerX is dassl.engine.TrainerX and DataManager and build_clip and load_checkpoint
assert pickle.loads(pickle.dumps(AverageMeter)) is AverageMeter
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ENGINE)}, check=True)


def test_extra_opts_are_as_if_typed_last(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXTRA_OPTS", "OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 3")
    results = train.main(argv("OPTIM.MAX_EPOCH", "7"))
    assert "EXTRA_OPTS appends OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 3" in capsys.readouterr().out
    assert results["command"].endswith("OPTIM.MAX_EPOCH 7 OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 3")
    assert results["shots"] == 3 and results["max_epoch"] == 1
    assert "NUM_SHOTS: 3" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("OPTIM.LRR 1", r"unknown config key OPTIM\.LRR"),
        ("OPTIM.LR", "OPTIM.LR has no value"),
        ("OPTIM.NAME 'sgd", 'EXTRA_OPTS is "OPTIM.NAME \'sgd": No closing quotation'),
    ],
)
def test_extra_opts_are_checked(refused, monkeypatch, text, match):
    monkeypatch.setenv("EXTRA_OPTS", text)
    refused(match)
