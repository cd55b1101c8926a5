"""Mixed precision: what each mode computes in, and what a CPU makes of it."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.engine import Precision, build_trainer
from dassl.engine.launch import run
from dassl.optim.radam import RAdam
from dassl.utils import UserError, set_random_seed
from tests.fixtures.dassl_style_world import style_config, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(
    ("mode", "computes"),
    [("fp32", torch.float32), ("fp16", torch.float32), ("amp", torch.bfloat16), ("bf16", torch.bfloat16)],
)
def test_modes_on_a_cpu(mode, computes):
    precision = Precision(mode)
    layer = nn.Linear(2, 2)
    with precision.autocast():
        assert layer(torch.ones(1, 2)).dtype == computes
    assert layer(torch.ones(1, 2)).dtype == torch.float32
    assert (precision.mode, precision.dtype, precision.scaler) == (mode, torch.float32, None)


def test_an_unknown_mode_names_the_known():
    with pytest.raises(UserError, match=r"fp32, fp16, amp, bf16.*\[fp23\]"):
        Precision("fp23")


def test_the_cpu_says_what_it_does_in_one_line(capsys):
    Precision("amp")
    Precision("fp16")
    Precision("bf16")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Precision amp on a CPU", "Precision fp16 on a CPU"]


def test_mps_has_half_precision_without_scaling_or_is_refused(capsys, monkeypatch):
    for mode in ("amp", "fp16"):
        precision = Precision(mode, "mps")
        assert precision.scaler is None and precision.dtype == torch.float32
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Precision amp on mps", "Precision fp16 on mps",
    ]  # fmt: skip
    with pytest.raises(UserError, match="fp16 trains on CUDA only"):
        precision.check_training()
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")  # before PyTorch 2.5
    assert Precision("fp32", "mps").mode == "fp32"
    with pytest.raises(UserError, match="Precision bf16 on mps needs a newer PyTorch"):
        Precision("bf16", "mps")


def test_fp16_does_not_train_on_a_cpu_but_evaluates(root, tmp_path):
    cfg = style_config(root, tmp_path / "run", "ShortLosses", TRAINER__SHORT__PREC="fp16")
    with pytest.raises(UserError, match="fp16 trains on CUDA only"):
        run(cfg)
    assert not (tmp_path / "run").exists()
    assert 0 <= build_trainer(cfg).test() <= 100


@pytest.mark.parametrize("mode", ["amp", "bf16"])
def test_half_precision_training_keeps_fp32_weights(mode, root, tmp_path):
    found = {}
    for name in ("fp32", mode):
        cfg = style_config(root, tmp_path / name, "ShortLosses", TRAINER__SHORT__PREC=name)
        set_random_seed(1)
        trainer = build_trainer(cfg)
        dtypes = []
        trainer.linear.register_forward_hook(lambda _, args, out, seen=dtypes: seen.append(out.dtype))
        trainer.train()
        found[name] = trainer.linear.weight.detach()
        assert dtypes[0] == (torch.float32 if name == "fp32" else torch.bfloat16)
        assert found[name].dtype == torch.float32
    assert not torch.equal(found["fp32"], found[mode])
    torch.testing.assert_close(found["fp32"], found[mode], rtol=0, atol=0.02)


def scaled(scale=1024.0):
    """A Precision with torch's scaler as on CUDA, a layer and its SGD."""
    precision, layer = Precision("fp32"), nn.Linear(2, 1, bias=False)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return precision, layer, torch.optim.SGD(layer.parameters(), lr=0.1)


def test_a_scaled_step_is_the_plain_step():
    weights = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        precision, layer, optimizer = scaled(scale)
        idle = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)  # no gradient: left alone
        precision.backward(layer(torch.ones(1, 2)).sum())
        precision.step([optimizer, idle])
        weights.append(layer.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_clipped_to_a_norm_as_they_truly_are(scale):
    """The gradient is (3, 4): norm 5. Steps of rate 0.1 go as far as the norm allows."""
    precision, layer, optimizer = scaled(scale or 1.0)
    precision.scaler = precision.scaler if scale else None
    for max_norm, length in ((0.0, 0.5), (10.0, 0.5), (1.0, 0.1)):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        precision.backward(layer(torch.tensor([[3.0, 4.0]])).sum())
        precision.step([optimizer], max_norm)
        moved = before - layer.weight.detach()
        torch.testing.assert_close(moved, length * torch.tensor([[0.6, 0.8]]), rtol=1e-4, atol=1e-6)


def test_an_overflow_leaves_the_weights_and_lowers_the_scale():
    precision, layer, optimizer = scaled()
    before = layer.weight.detach().clone()
    precision.backward(layer(torch.full((1, 2), float("inf"))).sum())
    precision.step([optimizer], max_norm=1.0)
    assert torch.equal(layer.weight, before)
    assert precision.scaler.get_scale() == 512.0
    again = scaled()[0]
    again.load_state_dict(precision.state_dict())
    assert again.scaler.get_scale() == 512.0


class Reads(TorchDispatchMode):
    """count: numbers that Python was told of a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


KINDS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "radam": (RAdam, {}),
}


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("name", KINDS)
def test_a_scaled_step_reads_nothing_where_torch_has_a_fused_one(name, max_norm):
    """Gradients overflow in the first step and in the fourth: these are left out, as if they had not been."""
    kind, words = KINDS[name]
    weights, states, reads = [], [], []
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        precision, layer, _ = scaled(scale or 1.0)
        precision.scaler = precision.scaler if scale else None
        optimizer, steps = kind(layer.parameters(), lr=0.1, **words), []
        for step in range(6):
            if step == 3 and scale:  # an earlier file, that lies on the CPU
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            bad = step in (0, 3)
            optimizer.zero_grad()
            precision.backward(layer(torch.full((1, 2), float("inf") if bad else 1.0 + step)).sum())
            with Reads() as found:
                if scale or not bad:
                    precision.step([optimizer], max_norm)
            steps.append(found.count)
        weights.append(layer.weight.detach())
        states.append(optimizer.state_dict())
        reads.append(steps)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)
    if name in ("rmsprop", "radam"):
        assert all(reads[1])
    else:  # momentum begins with the first step that is taken
        assert reads[1] == [name == "momentum"] * 2 + [0] * 4
    assert not getattr(optimizer, "_step_supports_amp_scaling", None)


def test_without_gradients_a_scaled_step_does_nothing():
    precision, layer, optimizer = scaled()
    precision.step([optimizer])
    assert precision.scaler.get_scale() == 1024.0


def test_state_of_an_unscaled_mode_is_empty():
    precision = Precision("bf16")
    assert precision.state_dict() == {}
    precision.load_state_dict({})
