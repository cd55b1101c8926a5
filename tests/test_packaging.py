"""The engine as a package: what it asks for, what a wheel of it holds, and every Python that is here."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest

from scripts.release_check import ENGINE, PACKAGES, ROOT, VERSIONS, copied, interpreters, main

FOLDERS = [ENGINE / "dassl", *(ROOT / name for name in PACKAGES[1:]), ROOT / "scripts"]
COMPILE = """
import sys
from pathlib import Path
for folder in sys.argv[1:]:
    for file in Path(folder).rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), str(file), "exec", dont_inherit=True)
"""
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
HEAVY = {"sklearn", "matplotlib", "tensorboard", "open_clip", "snakemake", "transformers"}
OWN = f"3.{sys.version_info[1]}"


def said(python, *words, cwd=ROOT, **environment):
    """What a Python prints; nothing of this process' environment leads it to packages."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, *map(str, words)], env=env | environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, by the backend that pyproject.toml declares."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(ENGINE, folder / "source")
    assert 'build-backend = "setuptools.build_meta"' in (source / "pyproject.toml").read_text()
    said(sys.executable, "-c", BUILD, folder, cwd=source)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_is_the_tree(wheel):
    """Weights, word list and published tables included; no test, no tool, nothing else at its top level."""
    tree = {str(path.relative_to(ENGINE)) for path in (ENGINE / "dassl").rglob("*") if path.is_file()}
    tree = {name for name in tree if "__pycache__" not in name}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == tree
    assert {name.split("/")[0] for name in held} == {"dassl"}
    assert not {name for name in held if "test" in name.rsplit("/", 1)[1]}
    assert (
        wheel.read("dassl/clip/tiny/tiny_clip.safetensors")
        == (ENGINE / "dassl" / "clip" / "tiny" / "tiny_clip.safetensors").read_bytes()
    )


def test_only_torch_has_a_bound(wheel):
    facts = metadata(wheel)
    asked = facts.get_all("Requires-Dist")
    assert [name for name in asked if not name.replace("-", "").isalnum()] == ["torch>=2.4"]
    lines = (ENGINE / "requirements.txt").read_text().split()
    assert sorted(lines) == sorted(asked)  # what PYTHONPATH use needs is what installing brings
    assert facts["Requires-Python"] == f">={VERSIONS[0]}"


def test_the_project_asks_for_all_that_the_engine_asks_for():
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    asked = {line for line in lines if line}
    assert set((ENGINE / "requirements.txt").read_text().split()) <= asked
    assert f"-e ./{ENGINE.name}" in asked


def test_every_python_here_compiles_every_module():
    found = interpreters(VERSIONS)
    assert found
    for python in found.values():
        said(python, "-I", "-W", "error", "-c", COMPILE, *FOLDERS)


def test_every_python_with_torch_imports_every_module_and_runs(tmp_path):
    """From an empty folder, by PYTHONPATH; what is heavy or optional stays out until something asks for it.

    This Python has torch; of the others whichever has it, too.
    """
    others = interpreters([v for v in VERSIONS if v != OWN], "import torch, torchvision, yacs, safetensors")
    path = os.pathsep.join([str(ROOT), str(ENGINE)])
    for version, python in (others | {OWN: sys.executable}).items():
        folder = tmp_path / version
        folder.mkdir()
        script = shutil.copy(ROOT / "scripts" / "release_smoke.py", folder)
        facts = json.loads(said(python, script, *PACKAGES, cwd=folder, PYTHONPATH=path).splitlines()[-1])
        assert not HEAVY.intersection(facts["loaded"]) and {"torch", *PACKAGES} <= set(facts["loaded"])
        assert facts["file"] == str(ENGINE / "dassl" / "__init__.py")


def test_a_launcher_to_nothing_is_no_interpreter(tmp_path, monkeypatch):
    """As pyenv's, which are there for versions that it does not run."""
    run_own = f'exec "{sys.executable}" "$@"'  # the right one, and a wrong version of it
    for version, line in (("3.9", "exit 127"), (OWN, run_own), ("3.99", run_own)):
        path = tmp_path / f"python{version}"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreters(["3.9", OWN, "3.99"]) == {OWN: str(tmp_path / f"python{OWN}")}


def test_a_missing_python_is_a_row_and_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["3.10", "--no-project"]) == 1
    shown = capsys.readouterr().out
    assert "no interpreter" in shown and shown.count("3.10") == 2
