"""What a trainer written by hand gets wrong is said in one line that names its class and its file."""

import sys
import warnings

import pytest
import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, registry, set_random_seed
from dassl.utils.registry import import_modules
from tests.fixtures import dassl_style_world
from tests.fixtures.dassl_style_world import style_config

root = dassl_style_world.root  # a fixture
Short = TRAINER_REGISTRY.get("ShortLosses")
HERE = "test_mistakes.py"


def mistaken(losses):
    """A trainer whose losses() gives that function of the right ones."""
    return type("Mistaken", (Short,), {"losses": lambda self, batch: losses(Short.losses(self, batch))})


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda right: right["ce"], "gave a Tensor"),
        (lambda right: None, "gave a NoneType"),
        (lambda right: {}, "gave a dict"),
        (lambda right: list(right.values()), "gave a list"),
        (lambda right: {"ce": torch.stack([right["ce"]] * 3)}, "gave ce as"),
        (lambda right: {"ce": right["ce"], "kd": "0.1"}, "gave kd as"),
        (lambda right: {"ce": right["ce"].detach()}, "gave losses that depend on no trained weight"),
        (lambda right: {"ce": right["ce"].item()}, "gave losses that depend on no trained weight"),
    ],
    ids=["tensor", "nothing", "empty", "list", "vector", "text", "detached", "number"],
)
def test_losses_of_another_form_are_named(root, tmp_path, losses, message):
    trainer = mistaken(losses)(style_config(root, tmp_path, "ShortLosses"))
    with pytest.raises(UserError, match=rf"^Mistaken \(.*{HERE}\): losses\(\) {message}"):
        trainer.train()


def test_a_number_beside_losses_and_a_loss_of_one_element_are_fine(root, tmp_path):
    same = {}
    for name, losses in {
        "plain": lambda right: right,
        "others": lambda right: {key: value.reshape(1) for key, value in right.items()} | {"off": 0.0},
    }.items():
        set_random_seed(1)
        trainer = mistaken(losses)(style_config(root, tmp_path / name, "ShortLosses"))
        trainer.train()
        same[name] = trainer.linear.weight.detach()
    assert torch.equal(same["plain"], same["others"])


def test_nothing_to_train_is_said(root, tmp_path):
    class Frozen(Short):
        def build_model(self):
            super().build_model()
            self.model.requires_grad_(False)

    class Empty(Short):
        def build_model(self):
            self.model = nn.Flatten()
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)

    class Torchs(Short):
        def build_model(self):
            self.optim = torch.optim.SGD([], lr=0.1)

    with pytest.raises(UserError, match=rf"^Frozen \(.*{HERE}\): losses\(\) gave losses that depend on no trained"):
        Frozen(style_config(root, tmp_path, "ShortLosses")).train()

    class Style(TRAINER_REGISTRY.get("StylePrompt")):
        def build_model(self):
            super().build_model()
            self.model.requires_grad_(False)

    with pytest.raises(UserError, match=rf"^Style \(.*{HERE}\): its loss depends on no trained weight"):
        Style(style_config(root, tmp_path / "style", "StylePrompt")).train()
    for cls in (Empty, Torchs):
        TRAINER_REGISTRY.register(cls)
        try:
            with pytest.raises(UserError, match=rf"^{cls.__name__} \(.*{HERE}\) has nothing to train: its optim"):
                build_trainer(style_config(root, tmp_path, cls.__name__))
        finally:
            del TRAINER_REGISTRY._obj_map[cls.__name__]


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import nothing_like_it", "ModuleNotFoundError"), ("def broken(:", "SyntaxError"), ("exit(3)", "SystemExit")],
)
def test_a_broken_module_is_left_out_unless_it_is_asked_for(tmp_path, monkeypatch, code, reason):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_broken", {})
    package = tmp_path / f"plugins_{reason.lower()}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a_broken.py").write_text(f"{code}\n\nclass Asked{reason}:\n    pass\n")
    (package / "b_sound.py").write_text("LOADED = True\n")
    with pytest.warns(UserWarning, match=rf"a_broken\.py is left out: {reason}") as caught:
        import_modules(package.name, [str(package)])
    assert len(caught) == 1 and sys.modules[f"{package.name}.b_sound"].LOADED
    with pytest.raises(UserError, match=rf"Asked{reason} is in .*a_broken\.py, which cannot be imported: {reason}"):
        check_availability(f"Asked{reason}", ["Other"], "--trainer")
    for name in ("Unknown", ""):
        with pytest.raises(UserError, match=r"expected to belong to \[Other\]"):
            check_availability(name, ["Other"], "--trainer")


# Batches of one image, where there are batch norms


class Normed(Short):
    def build_model(self):
        self.linear = nn.Linear(16, self.num_classes)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), self.linear)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)


def test_batches_of_one_image_are_refused_where_batch_norms_train(root, tmp_path):
    cfg = style_config(root, tmp_path, "ShortLosses", DATALOADER__TRAIN_X__BATCH_SIZE=1)
    with pytest.raises(UserError, match=rf"^Normed \(.*{HERE}\) trains batch norms.*BATCH_SIZE is 1"):
        Normed(cfg).train()
    Short(cfg).train()  # others may


def test_a_last_batch_of_one_image_is_left_out(root, tmp_path, capsys):
    """Also by the schedule: it goes on as where such a loader drops its last batch."""
    weights = {}
    for drop_last in (True, False):
        set_random_seed(1)
        trainer = Normed(style_config(root, tmp_path / str(drop_last), "ShortLosses", TRAINER__SHORT__NOISE=0.0))
        data = [trainer.train_loader_x.dataset[i] for i in range(9)]
        trainer.train_loader_x = torch.utils.data.DataLoader(data, batch_size=4, drop_last=drop_last)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trainer.train()
        weights[drop_last] = trainer.linear.weight.detach(), trainer.sched.last_epoch
    assert torch.equal(weights[True][0], weights[False][0]) and weights[True][1] == weights[False][1]
    assert "The last batch has one image, which batch norms do not take: it is left out" in capsys.readouterr().out
