"""Which device a run takes. What there is to take is pretended: the choice itself is the real one."""

import re
from itertools import product

import pytest
import torch

from dassl.engine.lint import opening
from dassl.utils import device as devices
from dassl.utils.device import choose_device, device_name
from tests.conftest import ROOT
from tests.fixtures.dassl_style_world import style_config


@pytest.fixture
def there(monkeypatch):
    def go(cuda, mps, processes=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(devices, "world_size", lambda: processes)

    return go


def test_cuda_then_mps_then_the_cpu(there):
    for cuda, mps, processes in product((False, True), (False, True), (1, 2)):
        there(cuda, mps, processes)
        expected = "cuda" if cuda else "mps" if mps and processes == 1 else "cpu"
        assert choose_device(True) == torch.device(expected)
        assert choose_device(False) == torch.device("cpu")


def test_a_run_on_mps_says_what_that_lacks_before_it_begins(there, tmp_path):
    cfg = style_config(tmp_path, tmp_path / "run", "ShortLosses")
    cfg.defrost()
    said = {}
    for mps, cfg.USE_CUDA in product((False, True), (False, True)):
        there(False, mps)
        said[mps, cfg.USE_CUDA] = opening(cfg)
    on_mps = said.pop((True, True))
    assert "on mps (" in on_mps.splitlines()[0] and "mps has no float64" in on_mps.splitlines()[1]
    assert all("on the CPU, " in text and "mps has" not in text for text in said.values())


def test_a_device_has_a_name():
    assert re.fullmatch(r"cpu \(\w+\)", device_name(torch.device("cpu")))
    assert re.fullmatch(r"mps \(\w+\)", device_name(torch.device("mps")))


def test_one_place_chooses():
    """Nobody else asks for a GPU in order to take it."""
    packages = ("Dassl.ProGrad.pytorch/dassl", "mergetune", "condu", "datasets", "scripts")
    files = [ROOT / "train.py", *(path for name in packages for path in (ROOT / name).rglob("*.py"))]
    both = re.compile("USE_CUDA.*is_available|is_available.*USE_CUDA")
    asking = {str(path.relative_to(ROOT)) for path in files if both.search(path.read_text(encoding="utf-8"))}
    assert not asking and len(files) > 100
