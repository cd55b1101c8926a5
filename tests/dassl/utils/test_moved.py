"""Names of earlier versions: each gives what has its place now, warns, and names it."""

import importlib
import sys

import pytest

from dassl.utils.moved import CLASSES, METHODS, MOVED, OldMethods
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


@pytest.mark.parametrize(("module", "old"), [(module, old) for module, names in CLASSES.items() for old in names])
def test_an_old_class_is_the_new_one(module, old):
    new = CLASSES[module][old]
    with pytest.warns(FutureWarning, match=f"^{module}.{old} is now {new}$"):
        value = getattr(importlib.import_module(module), old)
    assert value is getattr(importlib.import_module(module), new)


def test_what_a_module_never_had_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Frozen'"):
        importlib.import_module("mergetune.clip_trainer").Frozen  # noqa: B018


class Mixin:
    def metadata(self):
        return super().metadata() | {"mixin": 1}


class Trainer(OldMethods):
    def metadata(self):
        return {"trainer": 1}

    def log_metrics(self, **metrics):
        return metrics


def test_an_old_override_counts_and_reaches_those_above_it_by_either_name():
    """Between the class that overrides and the base stands a mixin of the new name, which must not be passed over."""

    class Middle(Mixin, Trainer):
        pass

    with pytest.warns(FutureWarning, match="^Old.facts is now metadata$"):

        class Old(Middle):
            def facts(self):
                return super().facts() | {"old": 1}

    with pytest.warns(FutureWarning, match="^Old.facts is now metadata$"):
        assert Old().metadata() == {"trainer": 1, "mixin": 1, "old": 1}

    class New(Old):
        def metadata(self):
            return super().metadata() | {"new": 1}

    with pytest.warns(FutureWarning):
        assert New().facts() == New().metadata() == {"trainer": 1, "mixin": 1, "old": 1, "new": 1}


def test_an_old_call_arrives_and_a_class_without_the_new_name_keeps_its_own(recwarn):
    with pytest.warns(FutureWarning, match="^Trainer.note is now log_metrics$"):
        assert Trainer().note(acc=1) == {"acc": 1}

    class Router(Trainer):
        def route(self):
            return "mine"

    assert Router().route() == "mine" and not hasattr(Router, METHODS["route"]) and not recwarn
