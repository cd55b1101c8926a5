"""How banks are built: an image is decoded once, and no number depends on it."""

import os
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch.utils.data import default_collate
from torchvision.transforms import Compose

from dassl.clip import feature_bank
from dassl.clip.banks import main as list_banks
from dassl.clip.feature_bank import FeatureBank
from dassl.data import ViewIndex, views
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import WriteFailed
from tests.fixtures import banks
from tests.fixtures.banks import CLASSES, EACH, bank_loader, images, pixel_loader
from tests.fixtures.counts import counted as work_of
from tests.fixtures.counts import files
from tests.fixtures.image_folders import write_image
from tests.fixtures.live_memory import peak_of

cfg, backbone, counted = banks.cfg, banks.backbone, banks.counted  # fixtures
COUNT = CLASSES * EACH


@torch.inference_mode()
def round_by_round(pixels, backbone, number, batch_size):
    """{"feature": (N, D), ...} of one round, every image opened for it."""
    rows = []
    for batch in torch.arange(len(pixels)).split(batch_size):
        items = default_collate([pixels[ViewIndex(i, number)] for i in batch.tolist()])
        rows.append({})
        for name in (name for name in items if name.startswith("img")):
            several = isinstance(items[name], list)
            encoded = [backbone.encode_image(view) for view in (items[name] if several else [items[name]])]
            rows[-1][name.replace("img", "feature")] = torch.stack(encoded, 1) if several else encoded[0]
    return {name: torch.cat([some[name] for some in rows]) for name in rows[0]}


def assert_round_by_round(bank, backbone):
    for number in range(len(bank)):
        plain = round_by_round(bank.pixels, backbone, number, bank.batch_size)
        assert plain.keys() == bank.round(number).keys()
        assert all(torch.equal(bank.round(number)[name], value) for name, value in plain.items())


def shifted(image):
    """Of Python's and numpy's streams, and into the image itself."""
    image.paste((random.randrange(256), np.random.randint(256), 7), (0, 0, 9, 9))
    image.putpixel((20, 20), tuple(min(255, value + 90) for value in image.getpixel((20, 20))))
    return image


class Noted(Datum):
    """Notes in a file, whatever process it is in, each time that an image is decoded."""

    def load_image(self, **reading):
        with open(Path(self.impath).parents[1] / "decoded", "a") as file:
            file.write(".")
        return super().load_image(**reading)


def noted(cfg):
    source = [Noted(item.impath, item.label) for item in images(cfg)]
    return source, lambda: len((Path(cfg.DATASET.ROOT) / "decoded").read_text())


class Watched(Datum):
    """How many of the decoded images there are at once."""

    seen, most = [], 0

    def load_image(self, **reading):
        image = super().load_image(**reading)
        Watched.seen = [ref for ref in Watched.seen if ref()] + [weakref.ref(image)]
        Watched.most = max(Watched.most, len(Watched.seen))
        return image


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_once_for_all_views_and_each_has_the_numbers_of_its_round(
    cfg, backbone, batch_size, workers, monkeypatch
):
    monkeypatch.setattr(feature_bank, "WORKERS_FROM", 1)
    cfg.merge_from_list(["DATALOADER.TEST.BATCH_SIZE", batch_size, "DATALOADER.NUM_WORKERS", workers])
    source, decoded = noted(cfg)
    bank = bank_loader(cfg, backbone, views=4, pixels=pixel_loader(cfg, True, source=source)).dataset.bank
    assert decoded() == COUNT and len(bank) == 4 and bank.workers == workers
    assert_round_by_round(bank, backbone)


@pytest.mark.parametrize("workers", [0, 2])
def test_so_it_is_for_several_transforms_each_drawn_several_times(cfg, backbone, workers, monkeypatch):
    monkeypatch.setattr(feature_bank, "WORKERS_FROM", 1)
    cfg.merge_from_list(["DATALOADER.K_TRANSFORMS", 2, "DATALOADER.TEST.BATCH_SIZE", 5])
    cfg.DATALOADER.NUM_WORKERS = workers
    source, decoded = noted(cfg)
    both = [build_transform(cfg, is_train=True), Compose([shifted, build_transform(cfg, is_train=True)])]
    bank = bank_loader(cfg, backbone, views=6, pixels=pixel_loader(cfg, True, both, source)).dataset.bank
    assert decoded() == COUNT and len(bank) == 3 and bank.round()["feature2"].shape == (COUNT, 2, backbone.dim)
    assert_round_by_round(bank, backbone)


def test_a_transform_that_writes_into_its_image_spoils_no_other_view(cfg, backbone):
    transform = Compose([shifted, build_transform(cfg, is_train=False)])
    with work_of() as work:
        bank = bank_loader(cfg, backbone, views=5, pixels=pixel_loader(cfg, True, transform)).dataset.bank
    assert work.decoded == COUNT
    assert not torch.equal(bank.round(0)["feature"], bank.round(1)["feature"])
    assert_round_by_round(bank, backbone)


def test_more_views_decode_once_more_and_leave_what_is_there(cfg, backbone):
    few = bank_loader(cfg, backbone, views=2).dataset.bank
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in few.folder.glob("*.safetensors")}
    with work_of() as work:
        many = bank_loader(cfg, backbone, views=5).dataset.bank
    assert work.decoded == COUNT and len(before) == 2 and len(many) == 5
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in before} == before
    assert_round_by_round(many, backbone)


def test_a_round_is_the_file_that_earlier_versions_wrote_and_read(cfg, backbone):
    bank = bank_loader(cfg, backbone, views=1).dataset.bank
    rows = {"feature": round_by_round(bank.pixels, backbone, 0, bank.batch_size)["feature"]}
    content = save(rows, metadata=bank._facts(0, rows))
    file, size = bank._file(0), rows["feature"].nbytes
    assert file.stat().st_size == len(content) and file.read_bytes()[-size:] == content[-size:]
    assert torch.equal(load_file(file)["feature"], rows["feature"])
    file.write_bytes(content)
    with work_of() as work:
        assert torch.equal(bank_loader(cfg, backbone, views=1).dataset.bank.round()["feature"], rows["feature"])
    assert work.decoded == 0 and sorted(files(bank.folder)) == [".lock", "bank.json", file.name]


# memory


def test_the_memory_of_a_build_does_not_grow_with_images_or_views(cfg, backbone):
    cfg.DATALOADER.TEST.BATCH_SIZE = 4
    for label in range(CLASSES, 6 * CLASSES):
        for i in range(EACH):
            write_image(str(Path(cfg.DATASET.ROOT) / f"class{label}" / f"{i}.png"), seed=10 * label + i, size=(40, 36))

    def peak(count, views):
        source = [Watched(str(path)) for path in sorted(Path(cfg.DATASET.ROOT).rglob("*.png"))[:count]]
        pixels = pixel_loader(cfg, True, source=source).dataset
        bank, most = peak_of(lambda: FeatureBank(cfg, pixels, backbone, rounds=views))
        assert sum(bank._file(i).stat().st_size for i in range(views)) > 16_000 or count * views == 16
        return most

    least = peak(8, 2)
    assert peak(72, 2) < least + 4096 and peak(8, 40) < least + 4096
    assert Watched.most == 4  # images of one batch


def test_images_that_find_no_room_are_decoded_for_each_view(cfg, backbone, monkeypatch):
    monkeypatch.setattr(views, "PICTURES", 4 * 40 * 36 * 4)  # of 4 bytes a pixel
    cfg.DATALOADER.TEST.BATCH_SIZE = 6
    with work_of() as work:
        bank = bank_loader(cfg, backbone, views=3).dataset.bank
    assert work.decoded == 2 * (4 + 2 * 3)
    assert_round_by_round(bank, backbone)


# what a build that did not end leaves


@pytest.fixture
def broken_off(cfg, backbone):
    """A bank of three rounds whose build ended in its fifth batch, without a word."""
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    seen = []

    def end(*_):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt

    handle = backbone.module.visual.register_forward_hook(end)
    with pytest.raises(KeyboardInterrupt):
        bank_loader(cfg, backbone)
    handle.remove()
    (folder,) = Path(cfg.FEATURES.DIR).iterdir()
    return folder


def test_fewer_views_take_their_own_of_it_and_leave_the_others(cfg, backbone, broken_off):
    with work_of() as work:
        few = bank_loader(cfg, backbone, views=1).dataset.bank
    assert work.decoded == 2 and few.folder == broken_off
    assert {"parts.txt", "round-00000.safetensors", "round-00001.part"} < files(broken_off).keys()
    with work_of() as work:
        many = bank_loader(cfg, backbone, views=4).dataset.bank
    assert work.decoded == COUNT and not list(broken_off.glob("*part*"))
    assert_round_by_round(many, backbone)


def test_batches_of_another_size_are_not_taken(cfg, backbone, broken_off, counted):
    cfg.DATALOADER.TEST.BATCH_SIZE = 6
    bank = bank_loader(cfg, backbone).dataset.bank
    assert bank.folder == broken_off and counted() == 3 * COUNT and not list(broken_off.glob("*part*"))
    assert_round_by_round(bank, backbone)


def test_a_bank_with_parts_is_listed_and_removed(cfg, backbone, broken_off, capsys):
    (broken_off / "round-00002.part").write_bytes(bytes(3 << 20))
    list_banks([cfg.FEATURES.DIR])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if broken_off.name in line]
    assert row.split()[1:5] == [str(COUNT), "0+3", "3.0", "MB"]
    list_banks([cfg.FEATURES.DIR, "--remove", broken_off.name])
    assert not broken_off.exists()


def test_a_pipe_or_a_folder_is_neither_waited_for_nor_replaced(cfg, backbone, broken_off):
    for name in ("parts.txt", "round-00001.part", "round-00001.safetensors"):
        place = broken_off / name
        for make in (os.mkfifo, os.mkdir):
            place.unlink(missing_ok=True)
            make(place)
            with pytest.raises(WriteFailed, match=f"Cannot write .*{place.stem}"):
                bank_loader(cfg, backbone)
            assert place.is_fifo() or place.is_dir()
        place.rmdir()
    assert_round_by_round(bank_loader(cfg, backbone).dataset.bank, backbone)


def test_a_link_in_the_place_of_a_part_is_not_followed(cfg, backbone, broken_off, tmp_path):
    theirs = tmp_path / "theirs"
    for name in ("round-00001.part", "parts.txt"):
        theirs.write_text("theirs")
        (broken_off / name).unlink()
        (broken_off / name).symlink_to(theirs)
        with pytest.raises(WriteFailed, match=f"Cannot write .*{name}"):
            bank_loader(cfg, backbone)
        assert theirs.read_text() == "theirs"
        (broken_off / name).unlink()
    assert_round_by_round(bank_loader(cfg, backbone).dataset.bank, backbone)
