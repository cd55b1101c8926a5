"""From image lists to batches: records, wrapper, loaders, and augmentation that depends on the view alone."""

import os
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import ToTensor

from dassl.data import (
    DataManager,
    DatasetWrapper,
    ViewIndex,
    build_data_loader,
    relative_key,
    seeded_view,
    view_seed,
)
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import MissingFile, UserError, set_random_seed
from tests.fixtures.image_folders import config, write_image


@DATASET_REGISTRY.register()
class EightImages(DatasetBase):
    """Written on first use below the root: 8 training, 3 validation, 4 test and 8 unlabelled images."""

    def __init__(self, cfg):
        items = []
        for i in range(15):
            path = os.path.join(cfg.DATASET.ROOT, "eight", f"{i}.png")
            if not os.path.exists(path):
                write_image(path, seed=i)
            items.append(Datum(path, label=i % 2, domain=i % 3, classname=("cat", "dog")[i % 2]))
        super().__init__(train_x=items[:8], train_u=items[:8], val=items[8:11], test=items[11:])


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path, "EightImages", DATALOADER__TRAIN_X__BATCH_SIZE=4)


def streams():
    """What the three global streams would give next, without taking it."""
    state = random.getstate()
    python = random.random()
    random.setstate(state)
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], python


def epochs(cfg, which):
    """{(epoch, image): img} of the given epochs of the training loader."""
    loader = DataManager(cfg).train_loader_x
    images = {}
    for epoch in which:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            images |= {(epoch, os.path.basename(p)): i for p, i in zip(batch["impath"], batch["img"], strict=True)}
    return images


# --- Datum and DatasetBase


def test_datum_of_a_missing_file_names_it_and_what_there_is(tmp_path):
    with pytest.raises(MissingFile, match="cat.jpg.*its folder .* exists"):
        Datum(str(tmp_path / "cat.jpg"))
    with pytest.raises(MissingFile, match=f"pets/cat.jpg.*only {tmp_path} exists; is the data root right"):
        Datum(str(tmp_path / "pets" / "cat.jpg"))
    with pytest.raises(UserError, match="PosixPath"):
        Datum(tmp_path / "cat.jpg")


def test_datum_properties_are_read_only(tmp_path):
    write_image(str(tmp_path / "a.png"))
    datum = Datum(impath=str(tmp_path / "a.png"), label=3, domain=1, classname="emu")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == (str(tmp_path / "a.png"), 3, 1, "emu")
    with pytest.raises(AttributeError):
        datum.label = 4
    other = datum.relabelled(0)
    assert (datum.label, other.label, other.classname, other.domain) == (3, 0, "emu", 1)


def test_pickles_of_other_people_keep_working():
    """They name the class by module and hold four attributes; unpickling does not look for the file."""
    content = (
        b"\x80\x02cdassl.data.datasets.base_dataset\nDatum\n)\x81}(X\x07\x00\x00\x00_impathX\x08\x00\x00\x00/no/file"
        b"X\x06\x00\x00\x00_labelK\x05X\x07\x00\x00\x00_domainK\x00X\x0a\x00\x00\x00_classnameX\x03\x00\x00\x00catub."
    )
    datum = pickle.loads(content)
    assert (datum.impath, datum.label, datum.domain, datum.classname) == ("/no/file", 5, 0, "cat")
    assert pickle.loads(pickle.dumps(datum)).__dict__ == datum.__dict__
    assert b"dassl.data.datasets.base_dataset" in pickle.dumps(datum, protocol=2)


def test_base_counts_and_names_classes_by_training_labels():
    items = [
        Datum.listed("x", label, classname=name) for label, name in [(2, "emu"), (0, "cat"), (2, "emu"), (1, "dog")]
    ]
    base = DatasetBase(train_x=items, test=items)
    assert base.num_classes == 3
    assert base.classnames == ["cat", "dog", "emu"]
    assert base.lab2cname == {0: "cat", 1: "dog", 2: "emu"}
    assert (base.train_u, base.val) == (None, None)
    assert list(base.split_dataset_by_label(items)) == [2, 0, 1]
    assert DatasetBase.get_num_classes(items) == base.get_num_classes(items) == 3


def test_base_splits_by_domain_and_checks_domain_names():
    items = [Datum.listed("x", domain=domain) for domain in (1, 0, 1)]
    base = DatasetBase(train_x=items)
    assert {k: len(v) for k, v in base.split_dataset_by_domain(items).items()} == {1: 2, 0: 1}
    base.domains = ["photo", "sketch"]
    base.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="Input domain must belong to .*painting"):
        base.check_input_domains(["photo"], ["painting"])
    with pytest.raises(UserError, match="must both be given"):
        base.check_input_domains(["photo"], [])


def test_an_unknown_data_set_and_an_empty_list_are_refused(cfg, tmp_path):
    with pytest.raises(UserError, match=r"do you mean \[EightImages\]"):
        build_dataset(config(tmp_path, "EightImage"))
    with pytest.raises(UserError, match="EightImages: the list of test images is empty"):
        build_data_loader(cfg, data_source=[], tfm=ToTensor(), is_train=False)


# --- DatasetWrapper


def wrapper(cfg, transform=None, is_train=True):
    return DatasetWrapper(cfg, build_dataset(cfg).train_x, transform=transform, is_train=is_train)


def test_item_without_transform_is_an_image(cfg):
    item = wrapper(cfg)[5]
    assert item.pop("img").size == (12, 10)
    assert item.pop("impath").endswith("eight/5.png")
    assert item == {"label": 1, "domain": 2, "index": 5}


def test_views_k_times_and_from_several_transforms(cfg):
    cfg.DATALOADER.K_TRANSFORMS = 3
    cfg.DATALOADER.RETURN_IMG0 = True
    transform = build_transform(cfg)
    item = wrapper(cfg, [transform, transform])[ViewIndex(0, 4)]
    assert [len(item[key]) for key in ("img", "img2")] == [3, 3]
    six = [*item["img"], *item["img2"]]
    assert all(image.shape == (3, 8, 8) for image in [*six, item["img0"]])
    assert all(not torch.equal(a, b) for i, a in enumerate(six) for b in six[:i])
    tested = wrapper(cfg, build_transform(cfg, is_train=False), is_train=False)[0]
    assert tested["img"].shape == (3, 8, 8)


def test_k_views_are_numbered_on_from_epoch_times_k(cfg):
    transform = build_transform(cfg)
    once = wrapper(cfg, transform)
    cfg.DATALOADER.K_TRANSFORMS = 2
    pair = wrapper(cfg, transform)[ViewIndex(3, 5)]["img"]
    assert torch.equal(pair[0], once[ViewIndex(3, 10)]["img"])
    assert torch.equal(pair[1], once[ViewIndex(3, 11)]["img"])


def test_k_views_of_no_transform_are_refused(cfg):
    cfg.DATALOADER.K_TRANSFORMS = 2
    with pytest.raises(ValueError, match="Cannot augment the image K times because transform is None"):
        wrapper(cfg)


def test_img0_is_the_whole_image_resized(cfg):
    cfg.DATALOADER.RETURN_IMG0 = True
    cfg.INPUT.SIZE = (10, 12)
    cfg.INPUT.TRANSFORMS = ("random_flip",)
    data = wrapper(cfg, build_transform(cfg))
    assert torch.allclose(data[2]["img0"], ToTensor()(wrapper(cfg)[2]["img"]))


# --- views


def test_view_seed_is_fixed_for_ever():
    assert view_seed(1, 0, "a/b.jpg") == 15154948268109529450
    assert len({view_seed(s, v, k) for s in (1, 2) for v in (0, 1) for k in ("a", "b", "a\udcff")}) == 12


def test_relative_key_survives_a_move(tmp_path):
    assert relative_key(str(tmp_path / "pets" / "a.jpg"), str(tmp_path)) == "pets/a.jpg"
    assert relative_key(str(tmp_path / "pets" / "a.jpg"), f"{tmp_path}/") == "pets/a.jpg"
    assert relative_key("/elsewhere/a.jpg", str(tmp_path)) == "/elsewhere/a.jpg"
    assert relative_key(f"{tmp_path}x/a.jpg", str(tmp_path)) == f"{tmp_path}x/a.jpg"
    assert relative_key("data/a.jpg", "data") == "a.jpg"
    assert relative_key("a.jpg", "") == os.path.abspath("a.jpg")


def test_seeded_view_leaves_the_streams_where_they_were():
    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    set_random_seed(3)
    before = streams()
    with seeded_view(2**63 + 5):
        first = draw()
    with pytest.raises(RuntimeError), seeded_view(2**63 + 5):
        assert draw() == first
        raise RuntimeError
    with seeded_view(2**63 + 6):
        assert all(a != b for a, b in zip(draw(), first, strict=True))
    assert streams() == before


OURS = ("random_translation", "random_flip", "colorjitter", "cutout", "gaussian_noise")


@pytest.mark.parametrize("names", [OURS, ("randaugment", "randaugment2", "randaugment_fixmatch")])
def test_a_view_leaves_the_global_streams_alone(cfg, names):
    cfg.INPUT.TRANSFORMS = names
    cfg.INPUT.CUTOUT_LEN = 4
    data = wrapper(cfg, build_transform(cfg))
    set_random_seed(1)
    before = streams()
    first = data[ViewIndex(1, 0)]["img"]
    assert not torch.equal(data[ViewIndex(1, 1)]["img"], first)
    assert streams() == before
    set_random_seed(99)
    assert streams() != before
    assert torch.equal(data[ViewIndex(1, 0)]["img"], first)


def test_without_view_seeds_augmentation_follows_the_global_stream(cfg):
    cfg.INPUT.VIEW_SEEDS = False
    transform = build_transform(cfg)
    image = wrapper(cfg)[1]["img"]
    torch.manual_seed(4)
    expected = transform(image)
    torch.manual_seed(4)
    assert torch.equal(wrapper(cfg, transform)[1]["img"], expected)
    assert not hasattr(DataManager(cfg).train_loader_x.sampler, "set_epoch")


@pytest.mark.parametrize("keys", [(2, False), (2, True), (1, False)], ids=["fresh", "persistent", "one"])
def test_augmentation_is_independent_of_workers(cfg, keys):
    expected = epochs(cfg, range(2))
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.PERSISTENT = keys
    found = epochs(cfg, range(2))
    assert len(found) == 16
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(found[0, "1.png"], found[1, "1.png"])


def test_augmentation_is_independent_of_where_a_run_resumes(cfg):
    whole, resumed = epochs(cfg, range(4)), epochs(cfg, range(2, 4))
    assert all(torch.equal(whole[key], resumed[key]) for key in resumed)


def test_augmentation_depends_on_the_seed(cfg):
    first = epochs(cfg, [0])
    cfg.SEED = 2
    assert not any(torch.equal(image, first[key]) for key, image in epochs(cfg, [0]).items())


def test_view_seeds_do_not_change_the_order_of_images(cfg):
    orders = []
    for cfg.INPUT.VIEW_SEEDS in (True, False):
        loader = DataManager(cfg).train_loader_x
        torch.manual_seed(5)
        orders.append([batch["index"].tolist() for batch in loader])
    assert orders[0] == orders[1]


# --- loaders


def test_manager_builds_what_the_data_set_has(cfg, capsys):
    cfg.VERBOSE = True
    manager = DataManager(cfg)
    sizes = [len(loader) for loader in (manager.train_loader_x, manager.train_loader_u, manager.val_loader)]
    assert sizes == [2, 2, 1]
    assert (manager.num_classes, manager.num_source_domains) == (2, 0)
    assert manager.lab2cname == {0: "cat", 1: "dog"}
    batch = next(iter(manager.test_loader))
    assert batch["img"].shape == (4, 3, 8, 8)
    assert batch["label"].tolist() == [1, 0, 1, 0]
    assert batch["index"].dtype == torch.int64
    assert len(batch["impath"]) == 4
    printed = capsys.readouterr().out
    for line in (
        "Loading dataset: EightImages",
        "Building transform_train",
        "# train_x",
        "# val",
        "# test",
    ):
        assert line in printed


def test_unlabelled_loader_has_its_own_settings_if_asked(cfg):
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 2
    assert DataManager(cfg).train_loader_u.batch_size == 4
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    assert DataManager(cfg).train_loader_u.batch_size == 2


def test_custom_transforms_and_wrapper(cfg, capsys):
    class Halved(DatasetWrapper):
        def __getitem__(self, idx):
            return {"img": super().__getitem__(idx)["img"] / 2}

    plain = DataManager(cfg, custom_tfm_train=ToTensor(), custom_tfm_test=ToTensor())
    assert "* Using custom transform for training" in capsys.readouterr().out
    halved = DataManager(cfg, custom_tfm_test=ToTensor(), dataset_wrapper=Halved)
    images = [next(iter(manager.test_loader))["img"] for manager in (plain, halved)]
    assert torch.equal(images[0], images[1] * 2)


@pytest.mark.parametrize(("is_train", "size", "batches"), [(True, 5, 1), (True, 16, 1), (False, 5, 2)])
def test_the_last_short_batch_is_dropped_in_training_only(cfg, is_train, size, batches):
    data = build_dataset(cfg).train_x
    loader = build_data_loader(cfg, data_source=data, batch_size=size, tfm=ToTensor(), is_train=is_train)
    assert len(list(loader)) == len(loader) == batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", [0, 60])
def test_an_unreadable_image_is_named(cfg, workers, keep):
    manager = DataManager(cfg)
    path = manager.dataset.test[2].impath
    os.truncate(path, keep)
    cfg.DATALOADER.NUM_WORKERS = workers
    batches = iter(build_data_loader(cfg, data_source=manager.dataset.test, tfm=ToTensor(), is_train=False))
    with pytest.raises(UserError, match=path):
        list(batches)
    getattr(batches, "_shutdown_workers", int)()  # which the exception would keep


def test_more_workers_than_cores_are_said_and_fewer_start_where_that_changes_nothing(cfg, monkeypatch, capsys):
    monkeypatch.setattr("dassl.data.data_manager.cores", lambda: 2)
    cfg.DATALOADER.NUM_WORKERS = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own complaint
        for seeds, wrapper, used in ((True, None, 2), (True, DatasetWrapper, 5), (False, None, 5)):
            cfg.INPUT.VIEW_SEEDS = seeds
            manager = DataManager(cfg, dataset_wrapper=wrapper)
            assert manager.train_loader_x.num_workers == manager.test_loader.num_workers == used
            said = [line for line in capsys.readouterr().out.splitlines() if "NUM_WORKERS is 5, there are 2" in line]
            assert len(said) == 1
