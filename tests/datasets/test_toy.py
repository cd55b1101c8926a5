"""The toy world: the same images everywhere, whole on disk, readable like any other data set."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import PIL
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tools.make_tiny_clip.images import example, held_out

import datasets
from dassl.config import get_cfg_default, merge_tree, merge_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, WriteFailed
from datasets.toy import world
from datasets.toy.draw import BIG, SCALE, SIDE, generator, shrink
from datasets.toy.images import STYLES, finish
from datasets.toy.world import WORLD, _handwritten, world_digest, write_toy
from tests.condu.test_sessions import die_before, in_a_child
from tests.conftest import ROOT

SMALL = (2, 1, 3)  # images a class
WORLD_DIGEST = "66e8a97579e1f181"


@pytest.fixture(scope="module")
def toy_classes():
    """The data set classes with few images, by name."""
    datasets.register_all()
    from datasets.toy_world import declare

    return {name: declare(toy, counts=SMALL) for name, toy in WORLD.items()}


def cfg_for(root, shots=1, subset="all"):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.SEED = str(root), shots, subset, 1
    return cfg


def test_digest_of_twenty_images():
    assert world_digest() == WORLD_DIGEST, (
        f"these are other images than the benchmark's, drawn with Pillow {PIL.__version__} "
        f"and NumPy {np.__version__}; the digest was taken with Pillow 13.0.0 and NumPy 2.4.6"
    )


def test_another_process_draws_the_same():
    code = "from datasets.toy.world import world_digest; print(world_digest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == world_digest()


def drawn(code, root):
    """Run in another process -> what it printed, and how many toy images it drew; scikit-learn stays out."""
    code = f"""import sys
from datasets.toy import world
drawn = [0]
for cls in (world.ToySet, world.RealDigits):
    def image(self, *place, plain=cls.image):
        drawn[0] += 1
        return plain(self, *place)
    cls.image = image
{code}
print(*drawn, "sklearn" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_digest_of_images_that_are_there_draws_none(tmp_path):
    code = f"print(world.world_digest(world.write_toy(sys.argv[1], world.WORLD['ToyDigits'], {SMALL})))"
    assert drawn(code, tmp_path) == [WORLD_DIGEST, str(10 * sum(SMALL) + 20), "False"]
    assert drawn(code, tmp_path) == [WORLD_DIGEST, "0", "False"]
    stamp = tmp_path / "toy_digits" / "world.json"
    said = json.loads(stamp.read_text())
    for other in (said | {"world": "0" * 16}, {key: said[key] for key in said if key not in ("world", "check")}):
        stamp.write_text(json.dumps(other))  # by hand, and by an earlier version: as it is drawn
        assert drawn(code, tmp_path) == [WORLD_DIGEST, "20", "False"]


def test_boxes_are_averaged_as_numpy_does():
    pixels = np.random.default_rng(1).uniform(0, 255, (BIG, BIG, 3))
    for enlarged in (pixels, pixels.astype(np.float32)):
        whole = enlarged.reshape(SIDE, SCALE, SIDE, SCALE, 3).mean((1, 3), dtype=np.float32)
        assert shrink(enlarged).dtype == np.float32 and np.array_equal(shrink(enlarged), whole)


def test_the_handwritten_digits_are_scikit_learns():
    images, labels = _handwritten()
    theirs = load_digits()
    assert np.array_equal(images, theirs.images) and np.array_equal(labels, theirs.target)


def test_there_is_enough_to_choose_from():
    assert len(WORLD) >= 11
    usable = [toy for toy in WORLD.values() if toy.base_to_new]
    assert len(usable) >= 6
    assert all(len(toy.classnames) >= (10 if "one" in toy.classnames[1] else 12) for toy in usable)
    assert len({toy.folder for toy in WORLD.values()}) == len(WORLD)
    assert all("{}" in toy.template for toy in WORLD.values())


@pytest.mark.parametrize("name", sorted(WORLD))
def test_images_differ_by_class_split_and_number(name):
    toy = WORLD[name]
    keys = [(c, s, n) for c in toy.classnames[:3] for s in ("train", "val", "test") for n in (0, 1)]
    images = [toy.image(*key) for key in keys]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == len(keys)
    assert np.array_equal(toy.image(*keys[0]), images[0])


@pytest.mark.parametrize("name", ["ToyColours", "ToyCounts", "ToyObjects", "ToyPairs", "ToySizes"])
def test_both_halves_of_composed_classes_have_every_kind_of_part(name):
    """Each argument that says what a class is takes values in base and new, none of them in one half twice as often."""
    draws = [arguments for _, arguments in WORLD[name].draws.values()]
    half = len(draws) // 2
    parts = {key for key in draws[0] if name != "ToyPairs" or key == "relation"}
    for key in parts:
        base, new = (sorted(draw[key] for draw in draws[part]) for part in (slice(half), slice(half, None)))
        assert set(base) == set(new)
        assert max(abs(base.count(value) - new.count(value)) for value in base) <= 1


def test_layout_on_disk(tmp_path):
    toy = WORLD["ToyCounts"]
    folder = write_toy(tmp_path, toy, SMALL)
    lists = json.loads((folder / "split_zhou_ToyCounts.json").read_text())
    assert [len(lists[part]) // len(toy.classnames) for part in ("train", "val", "test")] == list(SMALL)
    paths = [path for part in lists.values() for path, _, _ in part]
    on_disk = {p.relative_to(folder / "images").as_posix() for p in (folder / "images").rglob("*.png")}
    assert len(paths) == len(set(paths)) and set(paths) == on_disk
    assert all(toy.classnames[label] == name for part in lists.values() for _, label, name in part)
    path, _, name = lists["test"][-1]
    with Image.open(folder / "images" / path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), toy.image(name, "test", SMALL[2] - 1))


def test_written_once_and_again_when_the_world_changes(tmp_path):
    toy = WORLD["ToyNumbers"]
    stamp = write_toy(tmp_path, toy, SMALL) / "world.json"
    first = stamp.stat().st_mtime_ns, (stamp.parent / "images/number_one/0000.png").read_bytes()
    write_toy(tmp_path, toy, SMALL)
    assert stamp.stat().st_mtime_ns == first[0]
    write_toy(tmp_path, replace(toy, strength=0.123), SMALL)
    assert (stamp.parent / "images/number_one/0000.png").read_bytes() != first[1]
    assert json.loads(stamp.read_text())["strength"] == 0.123


def test_a_damaged_stamp_means_drawing_again(tmp_path):
    folder = write_toy(tmp_path, WORLD["ToyNumbers"], SMALL)
    (folder / "world.json").write_text("{")
    (folder / "images/number_one/0000.png").unlink()
    write_toy(tmp_path, WORLD["ToyNumbers"], SMALL)
    assert (folder / "images/number_one/0000.png").is_file()


def test_two_processes_write_at_once(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from datasets.toy.world import write_toy\n"
        "from datasets.toy.world import WORLD\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "(here / sys.argv[2]).touch()\n"
        "while len(list(here.glob('ready*'))) < 2: time.sleep(0.002)\n"
        "write_toy(here / 'data', WORLD['ToySizes'], (4, 2, 6))\n"
        "print(len(list((here / 'data/toy_sizes/images').rglob('*.png'))))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"ready{i}"], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE) for i in range(2)]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0].strip() for process in started]
    assert outputs == [str(18 * 12)] * 2
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".toy_sizes.lock", "toy_sizes"]


@pytest.mark.parametrize("other", [False, True], ids=["first", "in the place of another world"])
def test_a_killed_writer_leaves_nothing_that_is_read_as_whole_and_is_gone_on_from(tmp_path, other):
    """Killed before every ninth of its calls to the system."""
    toy, counts = WORLD["ToyArrows"], (1, 1, 1)
    whole = files_of(write_toy(tmp_path / "whole", toy, counts))
    for number in itertools.count(1, 9):
        root = tmp_path / str(number)
        if other:
            write_toy(root, replace(toy, strength=0.123), (1, 1, 0))

        def draw(root=root, number=number):
            die_before(number, root)
            write_toy(root, toy, counts)

        done = in_a_child(draw)
        assert files_of(write_toy(root, toy, counts)) == whole
        assert sorted(path.name for path in root.iterdir()) == [".toy_arrows.lock", "toy_arrows"]
        if done == 0:
            break
    assert number > 30


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_folder_that_cannot_be_written_to_is_named_with_the_ways_on(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(WriteFailed, match=r'ToySizes is not in ".*/data" and cannot be drawn there \(.*: DATA,'):
        write_toy(tmp_path / "data", WORLD["ToySizes"], SMALL)


def test_a_split_that_is_not_the_one_drawn_is_said(tmp_path, capsys):
    split = write_toy(tmp_path, WORLD["ToySizes"], SMALL) / "split_zhou_ToySizes.json"
    write_toy(tmp_path, WORLD["ToySizes"], SMALL)
    assert not capsys.readouterr().out
    lists = json.loads(split.read_text())
    split.write_text(json.dumps(lists | {"test": lists["test"][1:]}))
    write_toy(tmp_path, WORLD["ToySizes"], SMALL)
    assert capsys.readouterr().out == f"{split} is not the benchmark's: remove {split.parent}, and it is drawn again\n"


def test_data_set_objects(toy_classes, tmp_path):
    base, new = (toy_classes["ToyPairs"](cfg_for(tmp_path, subset=subset)) for subset in ("base", "new"))
    names = WORLD["ToyPairs"].classnames
    assert base.classnames == names[:9] and new.classnames == names[9:]
    assert len(base.train_x) == 9 and len(base.val) == 9 and len(base.test) == 9 * SMALL[2]
    assert base.template == WORLD["ToyPairs"].template and set(base.templates) == {"coop", "kgcoop"}
    assert base.metadata() == {"world_digest": world_digest()}
    assert base.drawn["dataset"] == "ToyPairs" and base.split_digest == new.split_digest


def test_every_data_set_is_registered():
    datasets.register_all()
    assert set(WORLD) <= set(DATASET_REGISTRY.registered_names())


def test_no_data_root_is_an_error_before_anything_is_drawn(toy_classes):
    with pytest.raises(UserError, match="no data root"):
        toy_classes["ToyPairs"](cfg_for(""))


def test_real_digits_share_no_image_between_splits():
    toy = WORLD["ToyDigits"]
    counts = dict(zip(("train", "val", "test"), world.COUNTS, strict=True))
    seen = [toy.image("eight", split, i).tobytes() for split, count in counts.items() for i in range(count)]
    assert len(set(seen)) == len(seen) == sum(world.COUNTS)


@pytest.mark.parametrize("name", sorted(STYLES))
def test_styles_start_at_the_image_itself(name):
    clean = WORLD["ToyDigits"].image("two", "test", 0).astype(np.float32)
    untouched = finish(STYLES[name](generator("a"), clean, 0.0)).astype(int)
    assert np.abs(untouched - clean).max() <= 1
    strong = [STYLES[name](generator("a"), clean, 0.9) for _ in range(2)]
    assert np.array_equal(*strong) and np.abs(strong[0] - clean).mean() > 1


def test_pretraining_leaves_the_composed_classes_out():
    captions = [text for i in range(400) for text in example(5, i)[1]]
    held = [name for toy in ("ToyObjects", "ToyPairs") for name in WORLD[toy].classnames]
    assert len(held_out()) == 92 and len(captions) == 1600
    assert not [text for text in captions if any(name in text for name in held)]


def test_pretraining_images_are_a_function_of_seed_and_number():
    (image, captions), (again, texts) = example(3, 30), example.__wrapped__(3, 30)
    assert image.shape == (32, 32, 3) and len(captions) == 4
    assert np.array_equal(image, again) and captions == texts
    assert not np.array_equal(image, example(3, 31)[0]) and not np.array_equal(image, example(4, 30)[0])


def test_each_data_set_has_its_yaml():
    datasets.register_all()
    for toy in WORLD.values():
        cfg = get_cfg_default()
        final = merge_yaml(cfg, ROOT / "configs" / "datasets" / f"{toy.folder}.yaml")
        assert toy.name == cfg.DATASET.NAME and final["MODEL"]["BACKBONE"]["NAME"] == "tiny"
    merge_tree(cfg, {key: value for key, value in final.items() if key != "TRAINER"}, "toy.yaml")
    assert cfg.INPUT.SIZE == (32, 32) and cfg.FEATURES.VIEWS == 20 and "random_flip" not in cfg.INPUT.TRANSFORMS
