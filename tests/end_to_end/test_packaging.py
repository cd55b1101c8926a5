"""The engine as a package: what it asks for, what a wheel of it holds, and every Python that is here."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from scripts.noxfile import ENGINE, PACKAGES, ROOT, VERSIONS, copied

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


def interpreters(versions, code="pass"):
    """{version: path} of the first python3.X each, on PATH or in pyenv, that starts and runs `code`."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        folders += sorted(Path(root).glob("versions/*/bin"))
    found = {}
    for version in versions:
        check = f"import sys; assert '%d.%d' % sys.version_info[:2] == '{version}'; {code}"
        for path in (folder / f"python{version}" for folder in folders):
            if path.is_file() and not subprocess.run([path, "-I", "-c", check], capture_output=True).returncode:
                found.setdefault(version, str(path))
    return found


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
    """Weights and word list included; no test, no tool, nothing else at its top level."""
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
        script = shutil.copy(ROOT / "tests" / "fixtures" / "release_smoke.py", folder)
        facts = json.loads(said(python, script, *PACKAGES, cwd=folder, PYTHONPATH=path).splitlines()[-1])
        assert not HEAVY.intersection(facts["loaded"]) and {"torch", *PACKAGES} <= set(facts["loaded"])
        assert facts["file"] == str(ENGINE / "dassl" / "__init__.py")


def test_the_release_check_fails_where_a_python_is_missing(tmp_path):
    words = [sys.executable, "-m", "nox", "-f", ROOT / "scripts" / "noxfile.py", "--envdir", tmp_path]
    listed = subprocess.run([*words, "--list"], capture_output=True, text=True).stdout
    assert [version for version in VERSIONS if f"* release-{version}" in listed] == list(VERSIONS)
    words += ["-p", "3.10", "--", "--no-project"]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and "Python interpreter 3.10 not found" in done.stdout + done.stderr
