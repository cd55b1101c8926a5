"""Modules of earlier versions: each old path gives what lies elsewhere now, warns, and names the place."""

import importlib
import sys

import pytest

from dassl.utils.moved import MOVED
from tests.conftest import ROOT


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module_and_says_so(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"^{old} is now {MOVED[old]}$"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old]) and module.__spec__.name == MOVED[old]


def test_no_file_stands_where_a_module_was():
    homes = [ROOT, ROOT / "Dassl.ProGrad.pytorch"]
    assert not [old for old in MOVED for home in homes if (home / f"{old.replace('.', '/')}.py").exists()]
