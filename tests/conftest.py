"""Shared pieces: a small ImageNet folder, a small CoOp-layout folder, and a way to run the clone's commands."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType, FunctionType

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
    "fuzz",
    "flow",
    "benchmarks",
    "sweep",
    "experiments",
    "gpu",
)
ORDER = {f"test_{name}": place for place, name in enumerate(LONG)}
LEFT_OUT = pytest.StashKey[dict]()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# names that code has which starts a process, as modules or as attributes
PROCESSES = {"subprocess", "multiprocessing", "Popen", "ProcessPoolExecutor", "fork", "execv", "posix_spawn"}


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="without the tests that start processes and the long modules")
    parser.addoption("--browser", action="store_true", help="fail where no browser is found, leave no test out")


def names_of(code: CodeType) -> set[str]:
    """The globals and attributes that code names, its inner functions included."""
    inner = [names_of(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def starts_processes(helper, seen: set) -> bool:
    """Does the code of a test, a fixture, or what it calls in tests/, name what starts a process?"""
    helper = getattr(helper, "__wrapped__", helper)
    if isinstance(helper, type):
        return any(starts_processes(method, seen) for method in vars(helper).values())
    if not isinstance(helper, FunctionType) or helper in seen:
        return False
    seen.add(helper)
    names = names_of(helper.__code__)
    called = [helper.__globals__.get(name) for name in names]
    helpers = [value for value in called if str(getattr(value, "__module__", "")).startswith("tests.")]
    return not names.isdisjoint(PROCESSES) or any(starts_processes(value, seen) for value in helpers)


def is_quick(item) -> bool:
    """Is a test one of those that finish a change? Others start processes, or are of a module that builds much."""
    fixtures = [fixture.func for several in item._fixtureinfo.name2fixturedefs.values() for fixture in several]
    return item.path.stem not in ORDER and not any(starts_processes(code, set()) for code in [item.function, *fixtures])


def find_browser() -> str | None:
    """The path of a Chromium or Chrome of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def pytest_collection_modifyitems(config, items):
    """Long modules first; left out are the tests of the page without a browser, and with --quick most."""
    items.sort(key=lambda item: ORDER.get(item.path.stem, len(LONG)))
    quick, every = config.getoption("quick"), config.getoption("browser") or find_browser()
    kept = {item for item in items if not quick or is_quick(item)}
    pages = [item for item in kept if "browser" in item.fixturenames and not every]
    kept.difference_update(pages)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    getattr(config, "workeroutput", config.stash.setdefault(LEFT_OUT, {}))["pages"] = len(pages)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A test process of pytest-xdist has ended: all of them have left out the same."""
    node.config.stash.setdefault(LEFT_OUT, {}).update(pages=getattr(node, "workeroutput", {}).get("pages", 0))


def pytest_terminal_summary(terminalreporter, config):
    if pages := config.stash.get(LEFT_OUT, {}).get("pages"):
        terminalreporter.write_line(
            f"{pages} tests of the HTML page were left out, for there is no browser: install a Chromium "
            f"(Debian: apt-get install chromium) or put one of {', '.join(BROWSERS)} on the path"
        )


def write_image(path, seed, size=32):
    """A PNG or JPEG of smooth random colours, so that crops of one image resemble each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def pets_root(tmp_path_factory):
    """A data root with OxfordPets in CoOp's layout: 6 breeds, 18 / 5 / 4 images each."""
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
    """A data root with an ImageNet of 4 classes, 17 training and 3 validation images each."""
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
