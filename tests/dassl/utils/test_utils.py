"""Registries, nearest names, meters, seeds, the environment's report."""

import random
import shutil
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

import dassl.utils.registry
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    UserError,
    check_availability,
    closest,
    collect_env_info,
    command_parser,
    errors_in_one_line,
    get_most_similar_str_to_a_from_b,
    set_random_seed,
)
from tests.conftest import ROOT


def test_registry_and_nearest_names():
    registry = Registry("TRAINER")

    @registry.register()
    class CoOp:
        pass

    assert registry.get("CoOp") is CoOp
    assert registry.register(Registry) is Registry  # so that it decorates without parentheses too
    assert registry.registered_names() == ["CoOp", "Registry"]
    assert "CoOp" in registry
    with pytest.raises(KeyError, match='"CoOp" was already registered in "TRAINER" registry'):
        registry.register(CoOp)
    registry.register(CoOp, force=True)
    with pytest.raises(KeyError) as caught:
        registry.get("coop")
    assert str(caught.value).startswith('Object name "coop" does not exist in "TRAINER" registry (nearest: CoOp')
    assert isinstance(caught.value, UserError)


def test_nearest_names():
    assert closest("coop", ["KgCoOp", "CoOp", "MaPLe"], n=2) == ["CoOp", "KgCoOp"]
    assert closest("x", []) == []
    assert get_most_similar_str_to_a_from_b("CoOpp", ["KgCoOp", "CoOp"]) == "CoOp"
    check_availability("CoOp", ["CoOp"])
    message = r"expected to belong to \[CoOp, KgCoOp\], but got \[CoOpp\] \(do you mean \[CoOp\]\?\)"
    with pytest.raises(ValueError, match=message):
        check_availability("CoOpp", ["CoOp", "KgCoOp"])


def test_meters_show_last_and_average():
    meter = MetricMeter()
    meter.update({"loss": 1, "acc": 50.0})
    meter.update(None)
    meter.update({"loss": torch.tensor(3.0, requires_grad=True), "acc": torch.tensor([100.0])})
    assert str(meter) == "loss 3.0000 (2.0000) acc 100.0000 (75.0000)"
    assert str(MetricMeter(delimiter="\t")) == ""
    with pytest.raises(TypeError, match="must be a dictionary"):
        meter.update([1.0])
    with pytest.raises(ValueError, match="shape"):
        meter.update({"loss": torch.zeros(2)})


def test_average_meter():
    smooth = AverageMeter(ema=True)
    for value in (1, 3):
        smooth.update(value)
    assert smooth.avg == pytest.approx(0.39)
    plain = AverageMeter()
    assert plain.avg == 0
    plain.update(2.0, n=3)
    plain.update(4.0)
    assert (plain.val, plain.sum, plain.count, plain.avg) == (4.0, 10.0, 4, 2.5)


def test_seeds():
    set_random_seed(1)
    assert random.random() == 0.13436424411240122
    assert np.random.rand() == 0.417022004702574
    assert torch.rand(1).item() == pytest.approx(0.7576315999, abs=1e-9)


def test_environment_report_ends_with_pillow():
    report = collect_env_info()
    assert f"PyTorch version: {torch.__version__}" in report
    assert report.splitlines()[-1] == f"        Pillow ({Image.__version__})"
    assert f"[pip3] torch=={metadata.version('torch')}" in report
    assert collect_env_info() is report


@pytest.mark.parametrize("take", [np.empty, torch.empty, bytearray], ids=["numpy", "torch", "python"])
def test_a_lack_of_memory_is_one_line(capsys, take):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        take(2**50)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Memory is gone: ")


def test_another_error_of_torchs_is_not_called_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="size of tensor"), errors_in_one_line():
        torch.ones(2) + torch.ones(3)


PLUGIN = """from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {}(TrainerX):
    KEYS = {{}}
"""


def test_a_line_of_the_plugins_file_registers_a_package_of_ones_own(tmp_path, clone):
    """The engine's folder is copied, so that the file beside it is one's own."""
    shutil.copytree(ROOT / "Dassl.ProGrad.pytorch" / "dassl", tmp_path / "engine" / "dassl")
    say = "from dassl.engine import TRAINER_REGISTRY as known; print('Mine' in known, 'Other' in known, len([*known]))"
    words = sys.executable, "-W", "error", "-c", say
    alone = clone(*words, cwd=tmp_path / "engine")
    assert alone.stdout.split()[:2] == ["False", "False"], alone.stderr
    for name in ("Mine", "Other"):
        path = tmp_path / "mine" / "trainers" / f"{name.lower()}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLUGIN.format(name))
    plugins = tmp_path / "configs" / "plugins.yaml"
    plugins.parent.mkdir()
    plugins.write_text("trainers: [mine.trainers]\n")
    assert clone(*words, cwd=tmp_path / "engine").stdout.split() == [
        "True",
        "True",
        str(int(alone.stdout.split()[2]) + 2),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kinds: [no_such_package.kinds]",
            "names no_such_package.kinds, which cannot be imported: ModuleNotF",
        ),
        ("kinds: mine", r"expected lists of packages, such as kinds: \[package.kinds\]"),
        ("kinds: [mine", "expected lists of packages"),
        ("[kinds]", "expected lists of packages"),
    ],
)
def test_a_plugins_file_that_is_wrong_is_named_whenever_it_is_read(tmp_path, monkeypatch, text, message):
    (tmp_path / "plugins.yaml").write_text(text)
    monkeypatch.setattr(dassl.utils.registry, "PLUGINS", str(tmp_path / "plugins.yaml"))
    registry = Registry("THING", plugins="kinds")
    for ask in (lambda: "thing" in registry, registry.registered_names):
        with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
            ask()


def test_pairs_of_a_shared_flag_are_of_one_command_line_alone():
    parser = command_parser("a.module", "What it does.", flags=("--set", "--overwrite"))
    line = ["--set", "A.KEY", "1", "--overwrite", "--set", "B.KEY", "-.5"]
    for words, pairs in ((line, ["A.KEY", "1", "B.KEY", "-.5"]), ([], []), (line, ["A.KEY", "1", "B.KEY", "-.5"])):
        args = parser.parse_args(words)
        assert args.pairs == pairs and args.overwrite is bool(words)
    assert parser.prog == "python -m a.module" and not hasattr(parser.parse_args([]), "root")
