"""Backbones, heads and small operations."""

import math

import pytest
import torch
import torchvision

from dassl.config import get_cfg_default
from dassl.engine import SimpleNet, TrainerBase
from dassl.modeling import build_backbone, build_head, build_network
from dassl.modeling.backbone.resnet import cached_weights
from dassl.modeling.ops import (
    ReverseGrad,
    create_onehot,
    ema_model_update,
    linear_rampup,
    mixup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)
from dassl.utils import MissingFile, UserError, load_pretrained_weights, resume_from_checkpoint, sha256_file


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_resnet_gives_the_features_before_the_classifier(name, width, capsys):
    """Under torchvision's keys, which are Dassl's."""
    backbone = build_backbone(name, pretrained=False).eval()
    assert capsys.readouterr().out == f"Backbone: {name}\n"
    reference = torchvision.models.get_model(name, weights=None).eval()
    reference.fc = torch.nn.Identity()
    reference.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 32, 64)
    assert torch.equal(backbone(images), reference(images))
    assert backbone.out_features == width


@pytest.mark.parametrize("name", ["resnet101", "resnet152"])
def test_deep_resnets_have_torchvisions_layers(name):
    with torch.device("meta"):
        backbone, reference = build_backbone(name, pretrained=False), torchvision.models.get_model(name)
    shapes = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in backbone.state_dict().items()} == shapes
    assert backbone.out_features == 2048


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
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2
    plain = build_head("mlp", verbose=False, in_features=8, hidden_layers=6, bn=False)
    assert [type(layer).__name__ for layer in plain.mlp] == ["Linear", "ReLU"]
    assert list(plain.state_dict()) == ["mlp.0.weight", "mlp.0.bias"]
    assert head.mlp[2](torch.tensor([-2.0, 3.0])).tolist() == pytest.approx([-0.02, 3.0])
    with pytest.raises(UserError, match="relu"):
        build_head("mlp", verbose=False, in_features=8, hidden_layers=(6,), activation="gelu")
    with pytest.raises(UserError, match="HIDDEN_LAYERS"):
        build_head("mlp", verbose=False, in_features=8, hidden_layers=())


class UpstreamNet(torch.nn.Module):
    """The keys and the outputs of Dassl's SimpleNet on resnet18 with an mlp head, written out."""

    def __init__(self, activation):
        super().__init__()
        self.backbone, self.head = torchvision.models.resnet18(weights=None), torch.nn.Module()
        del self.backbone.fc
        self.head.mlp = torch.nn.Sequential(torch.nn.Linear(512, 6), torch.nn.BatchNorm1d(6), activation)
        self.classifier = torch.nn.Linear(6, 3)

    def forward(self, x):
        self.backbone.fc = torch.nn.Identity()
        features = self.backbone(x)
        del self.backbone.fc
        return self.classifier(self.head.mlp(features))


def simple_net(activation="relu"):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS, cfg.MODEL.HEAD.ACTIVATION = "mlp", (6,), activation
    return SimpleNet(cfg, cfg.MODEL, 3)


def save(folder, state):
    (folder / "model").mkdir()
    torch.save({"state_dict": state, "epoch": 2, "optimizer": None}, folder / "model" / "model.pth.tar-2")
    (folder / "model" / "checkpoint").write_text("model.pth.tar-2\n")
    return folder


def readers(folder):
    """The three ways into a model -> what each is called with."""
    return [
        lambda model: resume_from_checkpoint(folder / "model", model),
        lambda model: load_pretrained_weights(model, folder / "model" / "model.pth.tar-2"),
        lambda model: trainer_of(model).load_model(str(folder), epoch=2),
    ]


def trainer_of(model):
    trainer = TrainerBase()
    trainer.register_model("model", model)
    return trainer


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_checkpoint_with_a_head_of_dassls_loads(activation, tmp_path):
    upstream = UpstreamNet({"relu": torch.nn.ReLU(), "leaky_relu": torch.nn.LeakyReLU()}[activation]).eval()
    save(tmp_path, upstream.state_dict())
    images = torch.randn(4, 3, 32, 32)
    for read in readers(tmp_path):
        model = simple_net(activation).eval()
        assert not torch.equal(model(images), upstream(images))
        read(model)
        assert torch.equal(model(images), upstream(images))


def before(state):
    """Its keys as this engine wrote them before it took Dassl's."""
    renamed = {key.replace("head.mlp.", "head.").replace("backbone.", "backbone.network."): state[key] for key in state}
    assert {"head.0.weight", "backbone.network.conv1.weight"} < set(renamed)
    return renamed


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    """To start from, it has what fits alone; leaky_relu was another function then."""
    save(tmp_path, before(simple_net().state_dict()))
    resume, _, load = readers(tmp_path)
    with pytest.raises(UserError, match=r"model\.pth\.tar-2 does not fit model: it lacks backbone\."):
        load(simple_net())
    with pytest.raises(UserError, match="does not fit this run"):
        resume(simple_net())


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


@pytest.mark.parametrize("preserve_order", [False, True])
def test_mixup_mixes_images_and_labels_by_one_share(preserve_order):
    torch.manual_seed(0)
    x1, x2, y1, y2 = torch.rand(64, 3, 4, 5), torch.rand(64, 3, 4, 5), *torch.rand(2, 64, 7)
    torch.manual_seed(1)
    share = torch.distributions.Beta(0.75, 0.75).sample((64, 1, 1, 1)).flatten()
    share = share.maximum(1 - share) if preserve_order else share
    assert (share.min() < 0.5) == (not preserve_order)
    torch.manual_seed(1)
    images, labels = mixup(x1, x2, y1, y2, 0.75, preserve_order)
    for i in range(64):
        torch.testing.assert_close(images[i], share[i] * x1[i] + (1 - share[i]) * x2[i])
        torch.testing.assert_close(labels[i], share[i] * y1[i] + (1 - share[i]) * y2[i])


def test_data_and_labels_are_reordered_together():
    data, label = torch.arange(12).view(6, 2), torch.arange(6)
    assert reverse_index(data, label)[0][:, 0].tolist() == [10, 8, 6, 4, 2, 0]
    assert reverse_index(data, label)[1].tolist() == [5, 4, 3, 2, 1, 0]
    torch.manual_seed(0)
    shuffled, labels = shuffle_index(data, label)
    assert sorted(labels.tolist()) == list(range(6)) != labels.tolist()
    assert torch.equal(shuffled[:, 0], 2 * labels)
