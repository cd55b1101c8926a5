"""Whose a feature bank is: what shares it, what makes another one, and what damage does."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.clip import feature_bank
from tests.fixtures import banks
from tests.fixtures.banks import CLASSES, EACH, bank_loader, images, key, pixel_loader
from tests.fixtures.clip_files import openai_backbone
from tests.fixtures.image_folders import write_image

cfg, backbone, counted = banks.cfg, banks.backbone, banks.counted  # fixtures


def test_seeds_share_the_test_view_and_nothing_else(cfg, backbone, counted):
    test, trained = key(cfg, backbone, is_train=False), key(cfg, backbone)
    cfg.SEED = 2
    before = counted()
    assert key(cfg, backbone, is_train=False) == test and counted() == before
    assert key(cfg, backbone) != trained and counted() > before


def test_every_trainer_of_a_seed_shares_the_training_views(cfg, backbone, counted):
    first = bank_loader(cfg, backbone)
    before = counted()
    cfg.OPTIM.LR, cfg.TRAINER.NAME, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 0.5, "Other", 2
    assert bank_loader(cfg, backbone).dataset.bank.key == first.dataset.bank.key and counted() == before


def test_other_weights_transform_or_images_are_another_bank(cfg, backbone):
    keys = [key(cfg, backbone), key(cfg, openai_backbone(seed=1).freeze())]
    cfg.INPUT.RRCROP_SCALE = (0.5, 1.0)
    keys.append(key(cfg, backbone))
    source = images(cfg)
    for part in (source[:-1], source[::-1]):
        pixels = pixel_loader(cfg, True, source=part)
        keys.append(key(cfg, backbone, pixels=pixels))
    assert len(set(keys)) == len(keys)


def test_a_moved_data_folder_keeps_its_bank(cfg, backbone, tmp_path, counted):
    first, before = key(cfg, backbone), counted()
    (tmp_path / "data").rename(tmp_path / "moved")
    cfg.DATASET.ROOT = str(tmp_path / "moved")
    assert key(cfg, backbone) == first and counted() == before


def test_a_changed_image_is_never_served_from_the_old_bank(cfg, backbone):
    bank = bank_loader(cfg, backbone, views=1).dataset.bank
    first = Path(images(cfg)[0].impath)
    stat = first.stat()
    write_image(str(first), seed=99, size=(40, 36))
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # one nanosecond later
    changed = bank_loader(cfg, backbone, views=1).dataset.bank
    assert changed.key != bank.key
    assert not torch.equal(changed.round()["feature"][0], bank.round()["feature"][0])
    assert torch.equal(changed.round()["feature"][1], bank.round()["feature"][1])


def key_of_clipping(cfg, backbone, monkeypatch):
    """The key of versions that clipped images of more than 8 bits: by size and time alone."""
    with monkeypatch.context() as patch:
        patch.setattr(feature_bank, "_is_deep", lambda *facts: False)
        return key(cfg, backbone)


def test_a_bank_of_clipped_images_is_not_found(cfg, backbone, monkeypatch):
    assert key(cfg, backbone) == key_of_clipping(cfg, backbone, monkeypatch)  # ordinary images keep theirs
    pixels = np.random.default_rng(0).integers(0, 2**16, (36, 40))
    Image.fromarray(pixels.astype("u2")).save(images(cfg)[0].impath)
    assert key(cfg, backbone) != key_of_clipping(cfg, backbone, monkeypatch)


def test_turned_images_have_a_bank_of_their_own(cfg, backbone):
    before = key(cfg, backbone)
    cfg.INPUT.MAX_PIXELS = 10_000
    assert key(cfg, backbone) == before
    cfg.INPUT.EXIF_ORIENTATION = True
    assert key(cfg, backbone) != before


def test_data_that_a_process_keeps_are_looked_at_again_after_a_while(cfg, backbone, monkeypatch):
    pixels, looked = pixel_loader(cfg, False), []
    look = feature_bank.check_file
    monkeypatch.setattr(feature_bank, "check_file", lambda path: looked.append(path) or look(path))
    first = key(cfg, backbone, is_train=False, pixels=pixels)
    assert len(looked) == CLASSES * EACH
    assert key(cfg, backbone, is_train=False, pixels=pixels) == first and len(looked) == CLASSES * EACH
    os.utime(images(cfg)[0].impath, ns=(1, 1))
    assert key(cfg, backbone, is_train=False) != first  # of data that are read anew
    monkeypatch.setattr(feature_bank, "LOOK_AGAIN", 0.0)
    assert key(cfg, backbone, is_train=False, pixels=pixels) != first


def test_strict_goes_by_contents(cfg, backbone):
    first = Path(images(cfg)[0].impath)
    loose, strict = key(cfg, backbone), key(cfg, backbone, strict=True)
    os.utime(first, ns=(1, 1))
    assert key(cfg, backbone, strict=True) == strict and key(cfg, backbone) != loose
    data = bytearray(first.read_bytes())
    write_image(str(first), seed=99, size=(40, 36))
    first.write_bytes(first.read_bytes()[: len(data)].ljust(len(data), b"\0"))  # same size, same time
    os.utime(first, ns=(1, 1))
    assert key(cfg, backbone, strict=True) != strict


def test_the_header_says_what_the_folder_is(cfg, backbone):
    bank = bank_loader(cfg, backbone).dataset.bank
    header = json.loads((bank.folder / "bank.json").read_text())
    assert header["weights"] == backbone.digest and header["backbone"] == "random" and header["seed"] == 1
    assert header["images"] == CLASSES * EACH and "RandomResizedCrop" in header["transform"]


# damage


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def rename_a_tensor(file):
    file.write_bytes(file.read_bytes().replace(b'"feature"', b'"fiature"'))


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "one bit of the last feature": lambda file: flip(file, -1),
    "one bit in the middle": lambda file: flip(file, len(file.read_bytes()) // 2),
    "one bit of the header": lambda file: flip(file, 12),
    "a name": rename_a_tensor,
    "another round": lambda file: file.write_bytes((file.parent / "round-00001.safetensors").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_round_is_built_again_with_a_warning(cfg, backbone, damage, capsys, counted):
    bank = bank_loader(cfg, backbone, views=2).dataset.bank
    expected = bank.round()["feature"].clone()
    file, before = bank.folder / "round-00000.safetensors", counted()
    DAMAGE[damage](file)
    again = bank_loader(cfg, backbone, views=2).dataset.bank
    assert capsys.readouterr().out.count(f'"{file}" is damaged') == 1
    assert torch.equal(again.round()["feature"], expected) and counted() == before + CLASSES * EACH
    bank_loader(cfg, backbone, views=2)
    assert counted() == before + CLASSES * EACH and "damaged" not in capsys.readouterr().out
