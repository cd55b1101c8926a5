"""Optimisers and schedules: the table of learning rates, and resumes that continue it exactly."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import ConstantWarmupScheduler, LinearWarmupScheduler, build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import AVAI_SCHEDS
from dassl.optim.optimizer import AVAI_OPTIMS
from dassl.optim.radam import RAdam
from dassl.utils import UserError


def optim_cfg(**keys):
    """The OPTIM node of the main setting (sgd 0.002, cosine over 50 epochs), with changes."""
    node = get_cfg_default().OPTIM
    defaults = {
        "NAME": "sgd",
        "LR": 0.002,
        "LR_SCHEDULER": "cosine",
        "MAX_EPOCH": 50,
        "WARMUP_TYPE": "constant",
    }
    for key, value in {**defaults, **keys}.items():
        node[key] = value
    return node


def build(**keys):
    cfg = optim_cfg(**keys)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(2))], cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def rates(optimizer, scheduler, epochs):
    """Learning rate of each epoch, with the step at its end."""
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


COSINE = [0.002, 0.001998026728, 0.001992114701, 0.001982287251, 0.001968583161, 0.001951056516]
STEPPED = {"LR_SCHEDULER": "single_step", "STEPSIZE": (2, 3)}
MULTI = {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 4)}
TABLE = [
    ({"WARMUP_EPOCH": 1}, [1e-5, *COSINE, 0.001929776486]),
    ({"WARMUP_EPOCH": -1}, COSINE),
    ({"WARMUP_EPOCH": 0}, COSINE),
    (
        {"WARMUP_EPOCH": 1, "WARMUP_RECOUNT": False},
        [1e-5, 0.002, 0.001994082134, 0.001984244978, 0.001970527354, 0.0019529834],
    ),
    ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "linear"}, [1e-5, *COSINE]),
    ({"WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear"}, [1e-5, 0.0006666666667, 0.001333333333, *COSINE[:3]]),
    (
        {"WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear", "WARMUP_RECOUNT": False},
        [1e-5, 0.0006666666667, 0.001333333333, 0.002, 0.001986173457, 0.001968490203],
    ),
    (
        {"WARMUP_EPOCH": 3, "MAX_EPOCH": 10},
        [1e-5] * 3 + [0.002, 0.001951056516, 0.001809016994, 0.001587785252, 0.001309016994, 0.001, 0.0006909830056],
    ),
    ({"WARMUP_EPOCH": 1, "MAX_EPOCH": 100}, [1e-5, 0.002, 0.00199950656, 0.001998026728]),
    ({"WARMUP_EPOCH": 1, "MAX_EPOCH": 200}, [1e-5, 0.002, 0.001999876632, 0.00199950656]),
    ({"LR_SCHEDULER": "single_step", "MAX_EPOCH": 10}, [0.002] * 10 + [0.0002]),
    (STEPPED, [0.002] * 3 + [0.0002] * 3 + [2e-5]),
    (MULTI, [0.002] * 2 + [0.0002] * 2 + [2e-5]),
    ({**MULTI, "WARMUP_EPOCH": 1}, [1e-5] + [0.002] * 2 + [0.0002] * 2 + [2e-5]),
    ({**MULTI, "WARMUP_EPOCH": 1, "WARMUP_RECOUNT": False}, [1e-5, 0.002, 0.0002, 0.0002, 2e-5]),
    ({"LR_SCHEDULER": "constant", "WARMUP_EPOCH": 1}, [1e-5, 0.002, 0.002, 0.002]),
]


@pytest.mark.parametrize(("keys", "expected"), TABLE)
def test_learning_rates(keys, expected):
    assert rates(*build(**keys), len(expected)) == pytest.approx(expected, rel=1e-9)


def test_main_setting_over_all_epochs():
    seen = rates(*build(WARMUP_EPOCH=1), 50)
    assert seen[26] == pytest.approx(0.001, rel=1e-9)
    assert seen[49] == pytest.approx(7.885298686e-06, rel=1e-8)
    assert seen[1:] == pytest.approx([0.001 * (1 + math.cos(math.pi * e / 50)) for e in range(49)], rel=1e-9)


def test_warmup_sets_every_group():
    cfg = optim_cfg(WARMUP_EPOCH=2)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.2)]
    optimizer = build_optimizer(None, cfg, param_groups=groups)
    scheduler = build_lr_scheduler(optimizer, cfg)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-5]
    rates(optimizer, scheduler, 2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    with pytest.warns(UserWarning, match="STAGED_LR is ignored, because param_groups is given"):
        build_optimizer(None, optim_cfg(STAGED_LR=True), param_groups=groups)


def test_warmup_attributes():
    _, constant = build(WARMUP_EPOCH=3)
    assert isinstance(constant, ConstantWarmupScheduler)
    assert (constant.warmup_epoch, constant.cons_lr, constant.last_epoch, constant.base_lrs) == (
        3,
        1e-5,
        0,
        [0.002],
    )
    assert isinstance(constant.successor, torch.optim.lr_scheduler.CosineAnnealingLR)
    _, linear = build(WARMUP_EPOCH=3, WARMUP_TYPE="linear")
    assert isinstance(linear, LinearWarmupScheduler)
    assert linear.min_lr == 1e-5


RESUMABLE = [
    ("single_step", (3,)),
    ("multi_step", (2, 6)),
    ("cosine", (-1,)),
    ("constant", (-1,)),
]


@pytest.mark.parametrize(("name", "stepsize"), RESUMABLE)
@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("warmup", ["constant", "linear", None])
def test_resume_continues_the_sequence(tmp_path, name, stepsize, stop, warmup):
    keys = {"LR_SCHEDULER": name, "STEPSIZE": stepsize, "MAX_EPOCH": 10, "WARMUP_EPOCH": 2 if warmup else -1}
    keys["WARMUP_TYPE"] = warmup or "constant"
    whole = rates(*build(**keys), 10)
    optimizer, scheduler = build(**keys)
    first = rates(optimizer, scheduler, stop)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    optimizer, scheduler = build(**keys)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert first + rates(optimizer, scheduler, 10 - stop) == whole


@pytest.mark.parametrize("stop", [1, 4])
def test_resume_from_a_state_that_holds_the_live_successor(stop):
    keys = {"MAX_EPOCH": 10, "WARMUP_EPOCH": 2}
    whole = rates(*build(**keys), 10)
    optimizer, scheduler = build(**keys)
    rates(optimizer, scheduler, stop)
    old = {key: value for key, value in vars(scheduler).items() if key != "optimizer"} | {"verbose": False}
    old, optimizer_state = copy.deepcopy((old, optimizer.state_dict()))
    optimizer, scheduler = build(**keys)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(old)
    assert scheduler.successor is not old["successor"]
    assert not hasattr(scheduler, "verbose")
    assert rates(optimizer, scheduler, 10 - stop) == whole[stop:]


def test_a_state_without_the_counters_is_refused():
    _, scheduler = build(WARMUP_EPOCH=2)
    with pytest.raises(UserError, match="cannot be resumed"):
        scheduler.load_state_dict({"last_epoch": 1, "successor": object()})


@pytest.mark.parametrize("name", AVAI_SCHEDS)
def test_schedulers_can_be_pickled(name):
    cfg = optim_cfg(LR_SCHEDULER=name, STEPSIZE=(2,), WARMUP_EPOCH=int(name != "cosine_steps"))
    scheduler = build_lr_scheduler(build_optimizer([nn.Parameter(torch.zeros(2))], cfg), cfg, steps_per_epoch=4)
    copied = pickle.loads(pickle.dumps(scheduler))
    assert copied.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"LR_SCHEDULER": "cosin"}, ValueError, "cosine"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "square"}, ValueError, "linear"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (1.5,)}, TypeError, "integer"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 5}, TypeError, "list"),
        ({"NAME": "sdg"}, ValueError, r"do you mean \[sgd\]"),
        ({"STAGED_LR": True}, TypeError, "module"),
    ],
)
def test_bad_settings(keys, error, words):
    with pytest.raises(UserError, match=words) as caught:
        build(**keys)
    assert isinstance(caught.value, error)


@pytest.mark.parametrize("name", AVAI_OPTIMS)
def test_every_optimizer_descends(name):
    weight = nn.Parameter(torch.full((3,), 5.0))
    optimizer = build_optimizer([weight], optim_cfg(NAME=name, LR=0.1))
    for _ in range(30):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().max() < 5.0


def test_optimizer_options_reach_torch():
    cfg = optim_cfg(SGD_NESTEROV=True, MOMENTUM=0.8, WEIGHT_DECAY=0.01)
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    group = build_optimizer(model, cfg).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"], group["lr"]) == (
        0.8,
        True,
        0.01,
        0.002,
    )
    assert len(group["params"]) == 2
    adam = build_optimizer(model, optim_cfg(NAME="amsgrad", ADAM_BETA1=0.5)).param_groups[0]
    assert (adam["amsgrad"], adam["betas"]) == (True, (0.5, 0.999))


def test_radam_decays_weights_apart_from_the_gradient():
    weight = nn.Parameter(torch.ones(1))
    optimizer = RAdam([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 0.5)


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.old = nn.Linear(2, 3)
        self.new = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(5))


@pytest.mark.parametrize("new_layers", ["new", ["new"], ("new",)])
def test_staged_rates_keep_every_parameter(new_layers):
    cfg = optim_cfg(STAGED_LR=True, LR=0.0003)
    cfg.NEW_LAYERS = new_layers
    base, new = build_optimizer(Staged(), cfg).param_groups
    assert (base["lr"], new["lr"]) == pytest.approx((3e-5, 3e-4))
    assert sorted(p.numel() for p in base["params"]) == [3, 5, 6]
    assert sorted(p.numel() for p in new["params"]) == [4, 12]


def test_staged_rates_warn_of_unknown_layers():
    cfg = optim_cfg(STAGED_LR=True)
    cfg.NEW_LAYERS = ["classifier"]
    with pytest.warns(UserWarning, match="classifier"):
        build_optimizer(Staged(), cfg)


def test_cosine_steps_warm_up_and_fall_to_zero():
    """WiSE-FT's: (s + 1) / w in step s < w, then half a cosine over the remaining steps."""
    keys = {"LR_SCHEDULER": "cosine_steps", "WARMUP_EPOCH": 0, "WARMUP_STEPS": 4, "LR": 0.1, "MAX_EPOCH": 3}
    cfg = optim_cfg(**keys)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(2))], cfg)
    scheduler = build_lr_scheduler(optimizer, cfg, steps_per_epoch=4)
    half = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates(optimizer, scheduler, 13) == pytest.approx([0.025, 0.05, 0.075, 0.1, *half, 0.0])
    assert scheduler.per_step


def test_cosine_steps_go_on_from_their_state():
    cfg = optim_cfg(LR_SCHEDULER="cosine_steps", WARMUP_EPOCH=0, WARMUP_STEPS=2, MAX_EPOCH=2)
    whole, halves = (build_optimizer([nn.Parameter(torch.zeros(2))], cfg) for _ in range(2))
    first, again = (build_lr_scheduler(optimizer, cfg, steps_per_epoch=4) for optimizer in (whole, halves))
    rates(whole, first, 3)
    halves.load_state_dict(whole.state_dict())
    again.load_state_dict(first.state_dict())
    assert rates(whole, first, 5) == rates(halves, again, 5)


@pytest.mark.parametrize(
    ("warmup", "steps", "match"), [(1, 4, "WARMUP_EPOCH from 1 to 0"), (0, None, "steps of an epoch")]
)
def test_cosine_steps_refuse_what_they_cannot_do(warmup, steps, match):
    cfg = optim_cfg(LR_SCHEDULER="cosine_steps", WARMUP_EPOCH=warmup)
    with pytest.raises(UserError, match=match):
        build_lr_scheduler(build_optimizer([nn.Parameter(torch.zeros(2))], cfg), cfg, steps)
