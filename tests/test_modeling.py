"""Backbones, heads and small operations."""

import math

import pytest
import torch
import torchvision

from dassl.modeling import build_backbone, build_head, build_network
from dassl.modeling.backbone.resnet import cached_weights
from dassl.modeling.ops import (
    ReverseGrad,
    create_onehot,
    ema_model_update,
    linear_rampup,
    sharpen_prob,
    sigmoid_rampup,
)
from dassl.utils import MissingFile, UserError, sha256_file


def test_resnet_gives_the_features_before_the_classifier(capsys):
    backbone = build_backbone("resnet18", pretrained=False).eval()
    assert capsys.readouterr().out == "Backbone: resnet18\n"
    reference = torchvision.models.resnet18(weights=None).eval()
    reference.fc = torch.nn.Identity()
    reference.load_state_dict(backbone.network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(images), reference(images))
    assert backbone.out_features == 512


def test_pretrained_weights_come_from_the_cache_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingFile, match="PRETRAINED"):
        build_backbone("resnet50", verbose=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"conv1.weight": torch.ones(2)}, folder / "resnet18-f37072fd.pth")
    with pytest.raises(UserError, match="f37072fd"):
        build_backbone("resnet18", verbose=False)
    digest = sha256_file(folder / "resnet18-f37072fd.pth")[:8]
    (folder / "resnet18-f37072fd.pth").rename(folder / f"small-{digest}.pth")
    assert cached_weights(f"https://host/small-{digest}.pth")["conv1.weight"].tolist() == [1, 1]


def test_mlp_head():
    head = build_head("mlp", verbose=False, in_features=8, hidden_layers=(6, 5), activation="leaky_relu", dropout=0.1)
    assert head(torch.randn(4, 8)).shape == (4, 5)
    assert head.out_features == 5
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2
    plain = build_head("mlp", verbose=False, in_features=8, hidden_layers=6, bn=False)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "ReLU"]
    with pytest.raises(UserError, match="relu"):
        build_head("mlp", verbose=False, in_features=8, hidden_layers=(6,), activation="gelu")
    with pytest.raises(UserError, match="HIDDEN_LAYERS"):
        build_head("mlp", verbose=False, in_features=8, hidden_layers=())


@pytest.mark.parametrize("build", [build_backbone, build_head, build_network])
def test_unknown_names(build):
    with pytest.raises(UserError, match="resnet81"):
        build("resnet81")


def test_reverse_grad():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = ReverseGrad()(x, 0.5)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad.tolist() == [-0.5, -0.5]


def test_labels_ramps_and_averages():
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.allclose(sharpen_prob(torch.tensor([[0.8, 0.2]])), torch.tensor([[0.64, 0.04]]) / 0.68)
    assert sigmoid_rampup(0, 10) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(5, 10) == pytest.approx(math.exp(-1.25))
    assert (sigmoid_rampup(20, 10), sigmoid_rampup(3, 0)) == (1.0, 1.0)
    assert (linear_rampup(5, 10), linear_rampup(20, 10), linear_rampup(0, 0)) == (0.5, 1.0, 1.0)
    with pytest.raises(UserError):
        linear_rampup(-1, 10)
    old, new = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = 0.9 * old.weight.detach() + 0.1 * new.weight.detach()
    ema_model_update(new, old, 0.9)
    assert torch.allclose(old.weight, expected)
