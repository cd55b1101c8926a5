"""The feature bank: equal to pixels, shared by whoever can use it, never used by whoever cannot."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dassl.clip import features
from dassl.clip.features import BankDataset, FeatureBank, build_feature_loader, feature_loader
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import UserError
from tests.fixtures.clip_files import cast, openai_backbone
from tests.fixtures.image_folders import config, write_image

ROOT = Path(__file__).resolve().parent.parent
CLASSES, EACH = 3, 4


@pytest.fixture
def cfg(tmp_path):
    for label in range(CLASSES):
        for i in range(EACH):
            path = tmp_path / "data" / f"class{label}" / f"{i}.png"
            write_image(str(path), seed=10 * label + i, size=(40, 36))
    cfg = config(tmp_path / "data", "Small", INPUT__SIZE=(32, 32))
    cfg.FEATURES.DIR = str(tmp_path / "bank")
    return cfg


def images(cfg):
    root = Path(cfg.DATASET.ROOT)
    return [
        Datum(str(root / f"class{label}" / f"{i}.png"), label=label) for label in range(CLASSES) for i in range(EACH)
    ]


def pixel_loader(cfg, is_train, transform=None, source=None):
    transform = transform or build_transform(cfg, is_train=is_train)
    sampler = "RandomSampler" if is_train else "SequentialSampler"
    source = source or images(cfg)
    return build_data_loader(cfg, sampler, source, batch_size=5, tfm=transform, is_train=is_train)


def bank_loader(cfg, backbone, is_train=True, views=3, **kwargs):
    return feature_loader(
        pixel_loader(cfg, is_train), backbone, folder=cfg.FEATURES.DIR, is_train=is_train, views=views, **kwargs
    )


@pytest.fixture(scope="module")
def backbone():
    return openai_backbone().freeze()


@pytest.fixture
def counted(backbone):
    """Counts the images that go through the tower."""
    seen = []
    handle = backbone.module.visual.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    yield lambda: sum(seen)
    handle.remove()


def epochs(loader, count, seed=0):
    """Batches of some epochs, as the engine asks for them."""
    torch.manual_seed(seed)
    batches = []
    for epoch in range(count):
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        batches += loader
    return batches


@torch.no_grad()
def encode(backbone, batch):
    return backbone.encode_image(batch["img"])


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
    loader = feature_loader(pixels, backbone, folder=cfg.FEATURES.DIR, is_train=True, views=4)
    assert len(loader.dataset.bank) == 2  # two rounds of two views
    for one, other in zip(epochs(pixels, 2), epochs(loader, 2), strict=True):
        for image, feature in (("img", "feature"), ("img2", "feature2")):
            assert len(one[image]) == len(other[feature]) == 2
            for view, stored in zip(one[image], other[feature], strict=True):
                assert torch.allclose(stored, encode(backbone, {"img": view}), atol=1e-5)


def test_a_batch_may_mix_epochs(cfg, backbone):
    from dassl.data import ViewIndex

    dataset = bank_loader(cfg, backbone, views=2).dataset
    assert isinstance(dataset, BankDataset) and len(dataset) == CLASSES * EACH
    batch = dataset.__getitems__([ViewIndex(3, 0), ViewIndex(3, 1)])
    expected = [dataset.bank.round(number)["feature"][3] for number in (0, 1)]
    assert torch.equal(batch["feature"], torch.stack(expected)) and batch["index"].tolist() == [3, 3]


def test_worker_processes_change_nothing(cfg, backbone, tmp_path, monkeypatch):
    alone = bank_loader(cfg, backbone).dataset.bank
    monkeypatch.setattr(features, "WORKERS_FROM", 1)
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


# whose bank it is


def key(cfg, backbone, is_train=True, **kwargs):
    return bank_loader(cfg, backbone, is_train, views=1, **kwargs).dataset.bank.key


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
        loader = feature_loader(pixels, backbone, folder=cfg.FEATURES.DIR, is_train=True)
        keys.append(loader.dataset.bank.key)
    assert len(set(keys)) == len(keys)


def test_a_moved_data_folder_keeps_its_bank(cfg, backbone, tmp_path, counted):
    first, before = key(cfg, backbone), counted()
    (tmp_path / "data").rename(tmp_path / "moved")
    cfg.DATASET.ROOT = str(tmp_path / "moved")
    assert key(cfg, backbone) == first and counted() == before


def test_a_changed_picture_is_never_served_from_the_old_bank(cfg, backbone):
    bank = bank_loader(cfg, backbone, views=1).dataset.bank
    first = Path(images(cfg)[0].impath)
    stat = first.stat()
    write_image(str(first), seed=99, size=(40, 36))
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # one nanosecond later
    changed = bank_loader(cfg, backbone, views=1).dataset.bank
    assert changed.key != bank.key
    assert not torch.equal(changed.round()["feature"][0], bank.round()["feature"][0])
    assert torch.equal(changed.round()["feature"][1], bank.round()["feature"][1])


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


# two processes

SCRIPT = """
import json, sys
from dassl.clip.features import feature_loader
from tests.fixtures.clip_files import openai_backbone
from tests.test_features import bank_loader, config
root, folder, pause = sys.argv[1:]
cfg = config(root, "Small", INPUT__SIZE=(32, 32), FEATURES__DIR=folder)
backbone, seen = openai_backbone().freeze(), []
def watch(module, args, out):
    seen.append(len(args[0]))
    if pause == "pause" and len(seen) == 2:
        print("ENCODING", flush=True)
        sys.stdin.readline()
backbone.module.visual.register_forward_hook(watch)
print("READY", flush=True)
sys.stdin.readline()
bank = bank_loader(cfg, backbone).dataset.bank
sums = [bank.round(number)["feature"].double().sum().item() for number in range(3)]
print(json.dumps({"encoded": sum(seen), "sum": sums}))
"""


class Process:
    """A builder that stops at READY and, with pause, in the middle of encoding, until told to go on."""

    def __init__(self, cfg, pause=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, cfg.DATASET.ROOT, cfg.FEATURES.DIR, pause],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def until(self, words):
        for line in self.process.stdout:
            if words in line:
                return line
        raise AssertionError(f"no line with {words}")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self):
        line = self.until('"encoded"')
        assert self.process.wait(timeout=60) == 0
        return json.loads(line)


@pytest.fixture
def two(cfg):
    """One builder held in its second round, and one that meanwhile waits for it."""
    first, second = Process(cfg, "pause"), Process(cfg)
    for process in (first, second):
        process.until("READY")
    first.go()
    first.until("ENCODING")
    second.go()
    second.until("another process builds")
    yield first, second
    for process in (first, second):
        process.process.kill()
        process.process.wait()
        process.process.stdin.close()
        process.process.stdout.close()


def test_the_second_process_waits_and_takes_what_the_first_has_built(cfg, backbone, two, counted):
    first, second = two
    first.go()
    results = first.result(), second.result()
    assert [result["encoded"] for result in results] == [3 * CLASSES * EACH, 0]
    assert results[0]["sum"] == results[1]["sum"]
    here = bank_loader(cfg, backbone).dataset.bank
    assert counted() == 0
    assert [here.round(i)["feature"].double().sum().item() for i in range(3)] == results[0]["sum"]


def test_a_killed_builder_leaves_whole_rounds_and_no_lock(cfg, two):
    first, second = two
    first.process.send_signal(signal.SIGKILL)
    assert second.result()["encoded"] == 2 * CLASSES * EACH  # the first round was whole


# refusals


def test_what_a_bank_cannot_stand_for_is_refused(cfg, backbone):
    for name, value in (("INPUT.VIEW_SEEDS", False), ("DATALOADER.RETURN_IMG0", True)):
        other = cfg.clone()
        other.merge_from_list([name, value])
        with pytest.raises(UserError, match=name):
            bank_loader(other, backbone)
    raw = build_data_loader(cfg, data_source=images(cfg), tfm=None, is_train=False)
    with pytest.raises(UserError, match="without a transform"):
        FeatureBank(cfg.FEATURES.DIR, raw.dataset, backbone)
    with pytest.raises(UserError, match="random is in training mode"):
        learning = openai_backbone()
        learning.module.train()
        bank_loader(cfg, learning)
    assert not Path(cfg.FEATURES.DIR).exists()


def test_a_lost_picture_is_named(cfg, backbone):
    loader = pixel_loader(cfg, False)
    lost = Path(images(cfg)[3].impath)
    lost.unlink()
    with pytest.raises(UserError, match=str(lost)):
        feature_loader(loader, backbone, folder=cfg.FEATURES.DIR, is_train=False)


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
    cfg.FEATURES.VIEWS = -1
    with pytest.raises(UserError, match="FEATURES.VIEWS is -1, expected 0"):
        build_feature_loader(cfg, train_pixels, backbone, is_train=True)
