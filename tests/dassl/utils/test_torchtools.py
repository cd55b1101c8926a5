"""Checkpoint files and helpers for modules."""

import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dassl.utils import (
    MissingFile,
    UserError,
    adjust_learning_rate,
    count_num_param,
    drop_token_buffers,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
    set_bn_to_eval,
    strip_module,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def state_of(model, epoch=2, **more):
    return {"state_dict": model.state_dict(), "epoch": epoch, "optimizer": None, "scheduler": None, **more}


def test_files_that_a_save_leaves(tmp_path, capsys):
    state = state_of(nn.DataParallel(Net()), val_result=71.5)
    before = list(state["state_dict"])
    save_checkpoint(state, tmp_path / "net")
    assert sorted(os.listdir(tmp_path / "net")) == ["checkpoint", "model.pth.tar-2"]
    assert (tmp_path / "net" / "checkpoint").read_text() == "model.pth.tar-2\n"
    assert capsys.readouterr().out == f"Checkpoint saved to {tmp_path / 'net' / 'model.pth.tar-2'}\n"
    assert list(state["state_dict"]) == before
    saved = load_checkpoint(tmp_path / "net" / "model.pth.tar-2")
    assert sorted(saved) == ["epoch", "optimizer", "scheduler", "state_dict", "val_result"]
    assert list(saved["state_dict"]) == [key.removeprefix("module.") for key in before]
    assert type(saved["state_dict"]) is OrderedDict
    save_checkpoint(state, tmp_path / "net", is_best=True, model_name="named", remove_module_from_keys=False)
    assert (tmp_path / "net" / "checkpoint").read_text() == "named\n"
    assert list(load_checkpoint(tmp_path / "net" / "model-best.pth.tar")["state_dict"]) == before
    assert "Best checkpoint saved to" in capsys.readouterr().out


def test_resume_restores_everything(tmp_path, capsys):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    batches = torch.randn(4, 8, 3)

    def step(model, optimizer, scheduler, batch):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()

    for batch in batches[:2]:
        step(model, optimizer, scheduler, batch)
    state = state_of(model, optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    save_checkpoint(state, tmp_path)
    other = Net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    other_scheduler = torch.optim.lr_scheduler.StepLR(other_optimizer, 1)
    capsys.readouterr()
    assert resume_from_checkpoint(tmp_path, other, other_optimizer, other_scheduler) == 2
    path = tmp_path / "model.pth.tar-2"
    assert capsys.readouterr().out.splitlines() == [
        f'Loading checkpoint from "{path}"',
        "Loaded model weights",
        "Loaded optimizer",
        "Loaded scheduler",
        "Previous epoch: 2",
    ]
    for batch in batches[2:]:
        step(model, optimizer, scheduler, batch)
        step(other, other_optimizer, other_scheduler, batch)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_resume_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(MissingFile, match='"checkpoint"'):
        resume_from_checkpoint(tmp_path, Net())
    save_checkpoint(state_of(nn.Linear(2, 2)), tmp_path)
    with pytest.raises(UserError, match="model.pth.tar-2"):
        resume_from_checkpoint(tmp_path, Net())
    (tmp_path / "model.pth.tar-2").unlink()
    with pytest.raises(MissingFile, match="model.pth.tar-2"):
        resume_from_checkpoint(tmp_path, Net())


def test_pretrained_weights_fill_what_fits(tmp_path, capsys):
    model, given = Net(), Net()
    kept = model.second.weight.clone()
    weights = {f"module.{key}": value for key, value in given.state_dict().items()}
    weights["module.second.weight"] = torch.zeros(7, 4)
    weights["extra"] = torch.zeros(1)
    torch.save({"state_dict": weights}, tmp_path / "nested.pth")
    load_pretrained_weights(model, tmp_path / "nested.pth")
    assert torch.equal(model.first.weight, given.first.weight)
    assert torch.equal(model.second.weight, kept)
    out = capsys.readouterr().out
    assert "Successfully loaded pretrained weights from" in out
    assert "['second.weight', 'extra']" in out
    torch.save(given.state_dict(), tmp_path / "bare.pth")
    load_pretrained_weights(model, tmp_path / "bare.pth")
    assert torch.equal(model.second.weight, given.second.weight)
    torch.save({"none": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.warns(UserWarning, match="other.pth"):
        load_pretrained_weights(model, tmp_path / "other.pth")


def test_token_buffers_go_and_trained_weights_stay():
    buffers = [
        "token_prefix",
        "prompt_learner.token_suffix",
        "token_midfix",
        "token_prefix2",
        "token_suffix2",
    ]
    buffers += ["token_embedding", "prompt_learner.tokenized_prompts", "bias_vectors"]
    weights = ["ctx", "text_encoder.token_embedding.weight", "token_prefix.weight"]
    state = dict.fromkeys(buffers + weights, 0)
    assert drop_token_buffers(state) is state
    assert list(state) == weights


def test_strip_module_and_counts():
    assert list(strip_module({"module.a": 1, "b.module.c": 2})) == ["a", "b.module.c"]
    model = nn.Linear(3, 2)
    assert count_num_param(model) == 8
    assert count_num_param(params=model.parameters()) == 8
    assert count_num_param(params=torch.optim.SGD(model.parameters(), lr=1).param_groups) == 8
    with pytest.raises(UserError):
        count_num_param()


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_layers_open_and_close(wrap):
    model = Net()
    open_specified_layers(wrap(model), "second")
    assert [name for name, param in model.named_parameters() if param.requires_grad] == [
        "second.weight",
        "second.bias",
    ]
    assert (model.norm.training, model.second.training) == (False, True)
    open_all_layers(wrap(model))
    assert all(param.requires_grad for param in model.parameters())
    assert model.norm.training
    with pytest.raises(UserError, match="third.*first"):
        open_specified_layers(wrap(model), ["third"])


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialisation(init_type):
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False))
    init_network_weights(model, init_type=init_type)
    assert model[0].bias.abs().max() == 0
    assert model[2].weight.eq(1).all()
    if init_type == "normal":
        assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    if init_type == "orthogonal":
        assert torch.allclose(model[0].weight @ model[0].weight.t(), 0.0004 * torch.eye(64), atol=1e-6)
    with pytest.raises(UserError, match="kaiming"):
        init_network_weights(model, init_type="uniform")


def test_batch_norms_keep_their_statistics_and_train():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.SyncBatchNorm(3), nn.Dropout()))
    model.train().apply(set_bn_to_eval)
    assert [layer.training for layer in (model, model[0], model[1], model[2][0], model[2][1])] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert all(param.requires_grad for param in model.parameters())


def test_rates_set_by_hand():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.ones(1))]}])
    rates = []
    for epoch in (0, 19, 20, 45):
        adjust_learning_rate(optimizer, 0.1, epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [pytest.approx([rate, rate]) for rate in (0.1, 0.1, 0.01, 0.001)]
    adjust_learning_rate(optimizer, 0.1, 25, linear_decay=True, final_lr=0.02, max_epoch=100)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.08)
