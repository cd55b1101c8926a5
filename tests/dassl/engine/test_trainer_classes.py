"""The trainers: names, config nodes, construction, the models they register."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.config import get_cfg_default
from dassl.engine import (
    TRAINER_REGISTRY,
    SimpleNet,
    TrainerBase,
    TrainerX,
    add_trainer_nodes,
    trainer,
)
from dassl.modeling import BACKBONE_REGISTRY, Backbone
from dassl.utils import UserError
from tests.fixtures import dassl_style_world
from tests.fixtures.dassl_style_world import build, style_config

root = dassl_style_world.root  # a fixture


@BACKBONE_REGISTRY.register()
class FlatBackbone(Backbone):
    """(B, 3, 8, 8) -> (B, 10)."""

    def __init__(self, pretrained=True, **kwargs):
        super().__init__()
        self.layer = nn.Linear(192, 10)
        self._out_features = 10

    def forward(self, x):
        return self.layer(x.flatten(1))


@TRAINER_REGISTRY.register()
class DefaultModel(TrainerX):
    """Dassl's default `build_model`, and its way to train it."""

    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        assert domain.tolist() == [0] * len(label)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


# Names and config


def test_every_name_of_the_contract_is_there():
    for name in ("TrainerBase", "SimpleTrainer", "SimpleNet", "TrainerX", "TrainerXU"):
        assert getattr(trainer, name) is getattr(__import__("dassl.engine").engine, name)


def test_an_unknown_trainer_names_the_nearest(root, tmp_path):
    with pytest.raises(UserError, match=r"got \[ShortLoses\] \(do you mean \[ShortLosses\]\?\)"):
        build(root, tmp_path, "ShortLoses")


def test_classes_bring_their_config_nodes(monkeypatch):
    class Parent(TrainerX):
        CONFIG = "PARENT"

        @classmethod
        def default_config(cls):
            return CN({"A": 1, "SUB": CN({"X": 1})})

    class Sibling(Parent):
        CONFIG = "PARENT"

        @classmethod
        def default_config(cls):
            return CN({"A": 2, "B": 3, "SUB": CN({"Y": 2})})

    class Child(Parent):
        CONFIG = "CHILD"

        @classmethod
        def default_config(cls):
            return CN({"C": 4})

    registry = {"Sibling": Sibling, "Child": Child}
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", registry)
    cfg = get_cfg_default()
    cfg.TRAINER.PARENT = CN({"A": 0})
    add_trainer_nodes(cfg)
    assert cfg.TRAINER.PARENT == {"A": 0, "SUB": {"X": 1, "Y": 2}, "B": 3}
    assert cfg.TRAINER.CHILD == {"C": 4}
    before = cfg.dump()
    add_trainer_nodes(cfg)
    assert cfg.dump() == before


# Construction and registration


def test_what_build_model_may_rely_on(root, tmp_path):
    facts = {}

    class Curious(TrainerX):
        def check_cfg(self, cfg):
            facts["cfg in check_cfg"] = hasattr(self, "cfg")

        def build_model(self):
            facts["loader"] = len(self.train_loader_x)
            facts["epoch"], facts["device"] = self.epoch, self.device.type
            facts["classes"] = (self.num_classes, self.lab2cname[0], self.dm.dataset.classnames[0])
            facts["evaluator"] = hasattr(self, "evaluator")
            self.model = nn.Identity()

    built = Curious(style_config(root, tmp_path, "Curious"))
    assert facts == {
        "cfg in check_cfg": False,
        "loader": 3,
        "epoch": 0,
        "device": "cpu",
        "classes": (6, "ant", "ant"),
        "evaluator": False,
    }
    assert built.best_result == -float("inf")


def test_registering():
    class Early(TrainerBase):
        def __init__(self):
            self.register_model("a", nn.Identity())

    with pytest.raises(AttributeError, match="before super"):
        Early()
    base = TrainerBase()
    base.register_model("a", nn.Linear(1, 1))
    base.register_model("b", nn.Linear(1, 1))
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        base.register_model("a", nn.Identity())
    assert base.get_model_names() == ["a", "b"]
    assert base.get_model_names("b") == ["b"]
    with pytest.raises(AssertionError, match="'c'"):
        base.get_model_names(["c"])
    base.set_model_mode("test", "a")
    assert (base._models["a"].training, base._models["b"].training) == (False, True)
    base.set_model_mode("eval")
    assert not base._models["b"].training
    base.set_model_mode("train")
    assert base._models["a"].training
    with pytest.raises(KeyError):
        base.set_model_mode("training")


def test_default_model_is_a_simple_net(root, tmp_path):
    keys = {
        "MODEL__BACKBONE__NAME": "FlatBackbone",
        "MODEL__HEAD__NAME": "mlp",
        "MODEL__HEAD__HIDDEN_LAYERS": (7,),
    }
    built = build(root, tmp_path, "DefaultModel", **keys)
    assert isinstance(built.model, SimpleNet)
    assert built.model.fdim == 7
    logits, features = built.model(torch.zeros(2, 3, 8, 8), return_feature=True)
    assert (logits.shape, features.shape) == ((2, 6), (2, 7))
    built.train()
    assert (tmp_path / "model" / "model.pth.tar-2").is_file()
    keys["MODEL__INIT_WEIGHTS"] = str(tmp_path / "model" / "model.pth.tar-2")
    again = build(root, tmp_path / "again", "DefaultModel", **keys)
    assert torch.equal(again.model.classifier.weight, built.model.classifier.weight)
    plain = SimpleNet(built.cfg, built.cfg.MODEL, 0)
    assert plain(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
