"""Shared pieces: a small ImageNet folder, a small CoOp-layout folder, and a way to run the clone's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.command_line import argv, refused  # noqa: F401  fixtures of several modules

ROOT = Path(__file__).resolve().parent.parent
# modules that build much, before the many short tests: so the test processes end together, and share few fixtures
LONG = (
    "toy_stream",
    "main_job",
    "script_runs",
    "distributed",
    "faults",
    "flow",
    "benchmarks",
    "sweep",
    "condu_scripts",
)


def pytest_collection_modifyitems(items):
    """Long modules first."""
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def write_image(path, seed, size=32):
    """A PNG or JPEG of smooth random colours, so that crops of one picture resemble each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def pets_root(tmp_path_factory):
    """A data root with OxfordPets in CoOp's layout: 6 breeds, 18 / 5 / 4 pictures each."""
    root = tmp_path_factory.mktemp("pets_data")
    names = ["abyssinian", "beagle", "bengal", "boxer", "great_pyrenees", "pug"]
    split = {"train": [], "val": [], "test": []}
    for label, name in enumerate(names):
        for i in range(27):
            part = "train" if i < 18 else "val" if i < 23 else "test"
            write_image(root / "oxford_pets" / "images" / f"{name}_{i}.png", 100 * label + i)
            split[part].append([f"{name}_{i}.png", label, name])
    (root / "oxford_pets" / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return root


@pytest.fixture(scope="session")
def imagenet_root(tmp_path_factory):
    """A data root with an ImageNet of 4 classes, 17 training and 3 validation pictures each."""
    root = tmp_path_factory.mktemp("imagenet_data")
    names = {
        "n01440764": "tench",
        "n01443537": "goldfish",
        "n01484850": "great white shark",
        "n01491361": "tiger shark",
    }
    for label, wnid in enumerate(names):
        for i in range(20):
            part = "train" if i < 17 else "val"
            write_image(root / "imagenet" / "images" / part / wnid / f"{wnid}_{i}.JPEG", 100 * label + i)
    lines = "".join(f"{wnid} {name}\n" for wnid, name in names.items())
    (root / "imagenet" / "classnames.txt").write_text(lines)
    return root


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """One data root for all test processes: the first run that wants a toy data set draws it, in its full size."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "toy_data"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def clone():
    """`clone(*words, data=, output=, cwd=, **environment)` runs a command of the clone as a shell would."""

    def run(*words, data="", output="", cwd=ROOT, check=True, **environment):
        env = os.environ | {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix} | environment
        env |= {key: str(value) for key, value in (("DATA", data), ("OUTPUT", output)) if value}
        done = subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A file name that is no UTF-8, in what a test prints, cannot be sent from one test process to another."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
