"""The feature bank: equal to pixels, and never used by whoever cannot."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dassl.clip import feature_bank
from dassl.clip.banks import main as list_banks
from dassl.clip.feature_bank import FeatureBank, _turn, build_feature_loader
from dassl.data import build_data_loader
from dassl.data.transforms import build_transform
from dassl.utils import UserError
from tests.fixtures import banks
from tests.fixtures.banks import CLASSES, EACH, bank_loader, encode, epochs, images, pixel_loader
from tests.fixtures.clip_files import cast, openai_backbone

cfg, backbone, counted = banks.cfg, banks.backbone, banks.counted  # fixtures


# bank and pixels


@pytest.mark.parametrize("is_train", [True, False])
def test_batches_are_those_from_pixels(cfg, backbone, is_train):
    pixels, bank = pixel_loader(cfg, is_train), bank_loader(cfg, backbone, is_train)
    assert len(pixels) == len(bank) == (2 if is_train else 3)
    count = 0
    for one, other in zip(epochs(pixels, 3), epochs(bank, 3), strict=True):
        assert torch.allclose(other["feature"], encode(backbone, one), atol=1e-5)
        for name in ("label", "domain", "index"):
            assert torch.equal(one[name], other[name])
        assert one["impath"] == other["impath"] and "img" not in other
        count += 1
    assert count == 3 * len(pixels)
    epochs(pixels, 3)
    state = torch.get_rng_state()
    epochs(bank, 3)
    assert torch.equal(torch.get_rng_state(), state)


def train(loader, backbone, views=4):
    """A linear head for some epochs -> its weights."""
    torch.manual_seed(3)
    head = torch.nn.Linear(backbone.dim, CLASSES)
    optim = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9)
    for batch in epochs(loader, views, seed=7):
        feature = batch["feature"] if "feature" in batch else encode(backbone, batch)
        loss = F.cross_entropy(head(F.normalize(feature, dim=-1)), batch["label"])
        optim.zero_grad()
        loss.backward()
        optim.step()
    return head.weight.detach()


def test_training_from_the_bank_is_training_from_pixels(cfg, backbone):
    pixels = train(pixel_loader(cfg, True), backbone)
    first = train(bank_loader(cfg, backbone, views=4), backbone)
    assert (pixels - first).abs().max() <= 1e-5
    assert torch.equal(train(bank_loader(cfg, backbone, views=4), backbone), first)
    other = train(bank_loader(cfg, backbone, views=1), backbone)
    assert (pixels - other).abs().max() > 1e-3, "the head does not see the views, so this test says nothing"


def test_fewer_views_than_epochs_start_over(cfg, backbone):
    bank = bank_loader(cfg, backbone, views=2).dataset.bank
    assert torch.equal(bank.round(2)["feature"], bank.round(0)["feature"])
    assert torch.equal(bank.round(7)["feature"], bank.round(1)["feature"])
    assert not torch.equal(bank.round(0)["feature"], bank.round(1)["feature"])


def test_more_views_are_added_to_the_same_bank(cfg, backbone, counted):
    few = bank_loader(cfg, backbone, views=2).dataset.bank
    files = {file: file.stat().st_mtime_ns for file in few.folder.glob("*.safetensors")}
    assert len(files) == 2 and counted() == 2 * CLASSES * EACH
    many = bank_loader(cfg, backbone, views=5).dataset.bank
    assert many.folder == few.folder and len(many) == 5 and counted() == 5 * CLASSES * EACH
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert len(bank_loader(cfg, backbone, views=2).dataset.bank) == 2 and counted() == 5 * CLASSES * EACH


def test_several_transforms_and_copies_keep_their_shape(cfg, backbone):
    cfg.DATALOADER.K_TRANSFORMS = 2
    both = [build_transform(cfg, is_train=True), build_transform(cfg, is_train=False)]
    pixels = pixel_loader(cfg, True, transform=both)
    loader = bank_loader(cfg, backbone, views=4, pixels=pixels)
    assert len(loader.dataset.bank) == 2  # two rounds of two views
    for one, other in zip(epochs(pixels, 2), epochs(loader, 2), strict=True):
        for image, feature in (("img", "feature"), ("img2", "feature2")):
            assert len(one[image]) == len(other[feature]) == 2
            for view, stored in zip(one[image], other[feature], strict=True):
                assert torch.allclose(stored, encode(backbone, {"img": view}), atol=1e-5)


def test_worker_processes_change_nothing(cfg, backbone, tmp_path, monkeypatch):
    alone = bank_loader(cfg, backbone).dataset.bank
    monkeypatch.setattr(feature_bank, "WORKERS_FROM", 1)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.FEATURES.DIR = str(tmp_path / "other")
    helped = bank_loader(cfg, backbone).dataset.bank
    assert helped.key == alone.key and helped.workers == 2
    for number in range(3):
        assert torch.equal(helped.round(number)["feature"], alone.round(number)["feature"])


def test_building_draws_no_random_number(cfg, backbone):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    bank_loader(cfg, backbone)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_keep_the_precision_they_were_computed_in(cfg, backbone):
    def mixed():
        return torch.autocast("cpu", torch.bfloat16)

    half = openai_backbone()
    cast(half.module, "fp16")
    kinds = {"plain": (backbone, nullcontext), "mixed": (backbone, mixed), "half": (half.freeze(), nullcontext)}
    banks = {name: bank_loader(cfg, model, autocast=autocast).dataset.bank for name, (model, autocast) in kinds.items()}
    assert len({bank.key for bank in banks.values()}) == 3
    assert [bank.round()["feature"].dtype for bank in banks.values()] == [torch.float32, torch.bfloat16, torch.float16]
    again = bank_loader(cfg, backbone, autocast=mixed)
    with mixed():
        for one, other in zip(epochs(pixel_loader(cfg, True), 1), epochs(again, 1), strict=True):
            assert torch.allclose(other["feature"], encode(backbone, one), atol=0.02)


def test_a_round_is_mapped_not_read(cfg, backbone):
    bank = bank_loader(cfg, backbone, views=1).dataset.bank
    bank.round()["feature"].sum()
    assert str(bank.folder / "round-00000.safetensors") in Path("/proc/self/maps").read_text()


# refusals


def test_what_a_bank_cannot_stand_for_is_refused(cfg, backbone):
    for name, value in (("INPUT.VIEW_SEEDS", False), ("DATALOADER.RETURN_IMG0", True)):
        other = cfg.clone()
        other.merge_from_list([name, value])
        with pytest.raises(UserError, match=name):
            bank_loader(other, backbone)
    raw = build_data_loader(cfg, data_source=images(cfg), tfm=None, is_train=False)
    with pytest.raises(UserError, match="without a transform"):
        FeatureBank(cfg, raw.dataset, backbone)
    with pytest.raises(UserError, match="random is in training mode"):
        learning = openai_backbone()
        learning.module.train()
        bank_loader(cfg, learning)
    assert not Path(cfg.FEATURES.DIR).exists()


def test_a_lost_image_is_named(cfg, backbone):
    loader = pixel_loader(cfg, False)
    lost = Path(images(cfg)[3].impath)
    lost.unlink()
    with pytest.raises(UserError, match=str(lost)):
        build_feature_loader(cfg, loader, backbone, is_train=False)
    os.mkfifo(lost.with_suffix(".pipe"))  # a pipe would be waited for
    lost.symlink_to(lost.with_suffix(".pipe"))
    with pytest.raises(UserError, match=f'{lost}" is no plain file'):
        build_feature_loader(cfg, loader, backbone, is_train=False)


def test_the_config_decides(cfg, backbone, monkeypatch, tmp_path):
    train_pixels, test_pixels = pixel_loader(cfg, True), pixel_loader(cfg, False)
    assert build_feature_loader(cfg, train_pixels, backbone, is_train=True) is train_pixels  # VIEWS 0
    cfg.merge_from_list(["FEATURES.VIEWS", 2, "FEATURES.DIR", ""])
    monkeypatch.setenv("OUTPUT", str(tmp_path / "runs"))
    bank = build_feature_loader(cfg, train_pixels, backbone, is_train=True).dataset.bank
    assert len(bank) == 2 and bank.folder.parent == tmp_path / "runs" / "features"
    assert len(build_feature_loader(cfg, test_pixels, backbone, is_train=False).dataset.bank) == 1
    cfg.FEATURES.TEST = False
    assert build_feature_loader(cfg, test_pixels, backbone, is_train=False) is test_pixels


# on disk


def test_banks_are_listed_and_removed_by_key(cfg, backbone, tmp_path, capsys):
    kept = bank_loader(cfg, backbone).dataset.bank.folder
    gone = bank_loader(cfg, backbone, is_train=False).dataset.bank.folder
    place = str(kept.parent)
    bystander = kept.parent / "notes"
    bystander.mkdir()
    capsys.readouterr()
    list_banks([place])
    rows = [line for line in capsys.readouterr().out.splitlines() if kept.name in line or gone.name in line]
    assert len(rows) == 2 and all(str(CLASSES * EACH) in row and backbone.name in row and "MB" in row for row in rows)
    for damage in ("", "[1]", "null", '{"images": null, "backbone": "a\\nb\\u001b[31m"}'):
        (gone / "bank.json").write_text(damage)
        list_banks([place])
        said = capsys.readouterr().out
        assert gone.name in said and said.count("\n") == 3 and "\x1b" not in said
    with pytest.raises(UserError, match=f"no bank nothing; there: .*{kept.name}"):
        list_banks([place, "--remove", gone.name, "nothing"])
    with _turn(gone), pytest.raises(UserError, match=rf"{gone}.* is in use by a running process .pid {os.getpid()}"):
        list_banks([place, "--remove", gone.name])
    assert gone.exists()
    list_banks([place, "--remove", gone.name])
    assert kept.exists() and not gone.exists()
    list_banks([place, "--remove", "all"])
    assert not kept.exists() and bystander.exists()
