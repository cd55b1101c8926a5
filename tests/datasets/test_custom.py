"""Your own images: class folders and tables, and what is said when they are not as expected."""

import collections
import json
import os
from types import SimpleNamespace

import pytest

import datasets
from dassl.config import get_cfg_default, merge_yaml
from dassl.data.datasets import build_dataset
from dassl.engine.results import images_seen
from dassl.utils import MissingFile, UserError
from tests.conftest import ROOT
from tests.fixtures.image_folders import config, write_image

datasets.register_all()

OWN = ("IMAGES", "NAMES", "PROMPTS", "TASK", "SPLIT", "LEAVE_OUT")
KINDS = ("adjustable_wrench", "claw_hammer", "hand_saw")


def write_folder(folder, kinds=KINDS, count=10):
    for kind in kinds:
        for i in range(count):
            write_image(str(folder / kind / f"{i:02d}.jpg"), seed=i)
    return folder


def built(root, name, path, **keys):
    keys = {f"DATASET__CUSTOM__{key}" if key in OWN else key: value for key, value in keys.items()}
    return build_dataset(config(root, name, DATASET__CUSTOM__PATH=path, **keys))


def folder_data(root, path="tools", **keys):
    return built(root, "ImageFolder", path, **keys)


def manifest(root, path="tools.csv", **keys):
    return built(root, "Manifest", path, **keys)


def paths(items, folder):
    return [(os.path.relpath(item.impath, folder), item.label) for item in items]


def csv_of(rows, header="path,label,split"):
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def rows_with_parts(folder="tools"):
    parts = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    return [(f"{folder}/{kind}/{i:02d}.jpg", kind, parts[i]) for kind in KINDS for i in range(10)]


@pytest.mark.parametrize(("stem", "name"), [("image_folder", "ImageFolder"), ("manifest", "Manifest")])
def test_the_yaml_shows_every_key_with_its_default(stem, name):
    cfg, default = get_cfg_default(), get_cfg_default()
    merge_yaml(cfg, ROOT / "configs" / "datasets" / "own" / f"{stem}.yaml")
    assert name == cfg.DATASET.NAME and cfg.DATASET.CUSTOM == default.DATASET.CUSTOM


# --- class folders


def test_class_folders_are_split_class_by_class_and_always_alike(tmp_path):
    folder = write_folder(tmp_path / "tools")
    before = sorted(tmp_path.rglob("*"))
    data, other = (folder_data(tmp_path, SEED=seed) for seed in (1, 2))
    parts = (data.train_x, data.val, data.test)
    assert [collections.Counter(item.label for item in part) for part in parts] == [
        dict.fromkeys(range(3), n) for n in (5, 2, 3)
    ]
    assert len({item.impath for part in parts for item in part}) == 30
    assert paths(data.test, folder) == paths(other.test, folder) and data.split_digest == other.split_digest
    assert data.classnames == ["adjustable wrench", "claw hammer", "hand saw"]
    assert (data.task, data.template, data.has_val) == ("tools", "a photo of a {}.", True)
    assert data.metadata() == {"dataset": "tools", "task": "tools", "prompts": ["a photo of a {}."]}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_keeps_its_split_when_another_comes(tmp_path):
    folder = write_folder(tmp_path / "tools")
    first = {path for path, _ in paths(folder_data(tmp_path).test, folder)}
    write_folder(folder, kinds=["bolt"], count=4)
    assert first < {path for path, _ in paths(folder_data(tmp_path).test, folder)}


def test_folders_that_are_split_already(tmp_path):
    for part, count in (("train", 4), ("Validation", 1), ("test", 2)):
        write_folder(tmp_path / "tools" / part, count=count)
    data = folder_data(tmp_path)
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [12, 3, 6]
    expected = [("test/adjustable_wrench/00.jpg", 0), ("test/adjustable_wrench/01.jpg", 0)]
    assert paths(data.test, tmp_path / "tools")[:2] == expected


def test_shots_and_halves_are_those_of_every_data_set(tmp_path):
    write_folder(tmp_path / "tools")
    base, new = (
        folder_data(tmp_path, DATASET__NUM_SHOTS=2, DATASET__SUBSAMPLE_CLASSES=part) for part in ("base", "new")
    )
    assert base.classnames == ["adjustable wrench", "claw hammer"] and new.classnames == ["hand saw"]
    assert [len(base.train_x), len(base.val), len(base.test)] == [4, 4, 6]
    assert base.drawn == new.drawn and len(base.drawn["train"]) == 6
    with pytest.raises(UserError, match=r"ImageFolder: 9 shots asked for, .*claw hammer \(5\)"):
        folder_data(tmp_path, DATASET__NUM_SHOTS=9)


def test_in_a_stream_the_validation_images_are_trained_on(tmp_path):
    folder = write_folder(tmp_path / "tools")
    alone = folder_data(tmp_path)
    keys = {"TASK": "Tools", "PROMPTS": ["a photo of a {}, a tool.", "a {}."]}
    task = folder_data(tmp_path, TRAINER__MODAL="mtil", **keys)
    assert paths(task.train_x, folder) == paths(alone.train_x + alone.val, folder)
    assert paths(task.test, folder) == paths(alone.test, folder)
    assert (task.val, task.has_val, task.task) == (None, False, "Tools")
    assert task.prompts == ["a photo of a {}, a tool.", "a {}."] and task.template == task.prompts[0]
    assert set(task.templates.values()) == {task.prompts[0]}


def test_names_set_the_words_and_the_order(tmp_path):
    folder = write_folder(tmp_path / "tools")
    names = {"hand_saw": "saw", "claw_hammer": "hammer", "adjustable_wrench": "wrench"}
    (folder / "names.json").write_text(json.dumps(names))
    data = folder_data(tmp_path, NAMES="names.json")
    assert data.classnames == ["saw", "hammer", "wrench"]
    assert all("hand_saw" in item.impath for item in data.test if item.label == 0)
    absolute = folder_data("", path=str(folder), NAMES=str(folder / "names.json"))
    assert absolute.classnames == data.classnames


# --- tables


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_table_with_a_split(tmp_path, kind):
    write_folder(tmp_path / "tools")
    rows = rows_with_parts()
    if kind == "csv":
        (tmp_path / "tools.csv").write_text("\ufeff" + csv_of(rows))  # as spreadsheets write it
    else:
        records = [dict(zip(("path", "label", "split"), row, strict=True)) for row in rows]
        (tmp_path / "tools.json").write_text(json.dumps(records))
    data = manifest(tmp_path, f"tools.{kind}")
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        expected = [(path, KINDS.index(label)) for path, label, own in rows if own == part]
        assert paths(items, tmp_path) == expected
    assert data.task == "tools" and data.classnames == ["adjustable wrench", "claw hammer", "hand saw"]


def test_a_table_without_a_split_is_split_like_folders(tmp_path):
    write_folder(tmp_path / "tools")
    (tmp_path / "tools.csv").write_text(
        csv_of([(p.removeprefix("tools/"), k) for p, k, _ in rows_with_parts()], "path,label")
    )
    table, folders = manifest(tmp_path, IMAGES="tools"), folder_data(tmp_path)
    assert paths(table.test, tmp_path) == paths(folders.test, tmp_path)
    assert table.split_digest == folders.split_digest


def test_numbers_need_names(tmp_path):
    write_folder(tmp_path / "tools")
    (tmp_path / "tools.csv").write_text(csv_of([(p, str(KINDS.index(k)), s) for p, k, s in rows_with_parts()]))
    with pytest.raises(UserError, match=r"classes are numbers \(0, \.\.\.\).*DATASET\.CUSTOM\.NAMES"):
        manifest(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"0": "wrench", "1": "hammer", "2": "saw"}))
    assert manifest(tmp_path, NAMES="names.json").classnames == ["wrench", "hammer", "saw"]
    (tmp_path / "names.json").write_text(json.dumps({"0": "wrench", "1": "hammer"}))
    with pytest.raises(UserError, match="has 2 classes, the images 3; 2 is in only one of them"):
        manifest(tmp_path, NAMES="names.json")


# --- mistakes

GOOD = ("tools/hand_saw/00.jpg", "saw", "train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["names the columns path, label and split"]),
        ("file,class\na,b\n", ["names the columns path, label and split", "file"]),
        ("path,label,split\n", ["no images in tools.csv"]),
        (csv_of([("", "saw", "train")]), ["line 2", "expected a path and a label"]),
        (csv_of([GOOD, ("../x.jpg", "saw", "test")]), ["line 3", "leaves"]),
        (csv_of([GOOD, ("/etc/x.jpg", "saw", "test")]), ["line 3", "leaves"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "saw", "eval")]), ["line 3", "'eval'", "train, val or test"]),
        (csv_of([GOOD, GOOD]), ["line 3", "twice", "line 2"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "saw", "")]), ["1 of 2 images have no part"]),
        (csv_of([GOOD, ("tools/hand_saw/99.jpg", "saw", "test")]), ["1 of the 1 images", "99.jpg"]),
        (csv_of([GOOD]), ["no test images"]),
        (csv_of([GOOD, ("tools/claw_hammer/00.jpg", "tack", "test")]), ["label 1 has no training images"]),
        ("path,label\ntools/hand_saw/00.jpg,saw\n", ["class saw has 1 image"]),
        ("path,label\na.png,kite, bird\n", ["tools.csv, line 2", "3 cells for 2 columns"]),
        (csv_of([GOOD, (*GOOD, "more", "more")]), ["tools.csv, line 3", "5 cells for 3 columns"]),
        ("path,label,path\na.png,kite,b.png\n", ["each once; found path, label, path"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "0.0", "test")]), ["line 3", "classes are numbers (0.0", "NAMES"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "-1", "test")]), ["line 3", "classes are numbers (-1"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "nan", "test")]), ["line 3", "classes are numbers (nan"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "_", "test")]), ["line 3", "class '_' has no name"]),
        ('path,label\na.jpg,"saw\nb.jpg,saw\n', ["label runs over several lines, is a quotation mark missing?"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "Saw", "test")]), ["class 'saw' has the name of class 'Saw'"]),
        (csv_of([GOOD, ("tools/hand_saw/01.jpg", "", "test")]), ["line 3", "expected a path and a label"]),
    ],
)
def test_a_bad_table_is_one_clear_error(tmp_path, content, words):
    write_folder(tmp_path / "tools", count=2)
    (tmp_path / "tools.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        manifest(tmp_path)
    for word in ("Manifest: ", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("label", "words"), [("true", "label is true"), ("0.0", "label is 0.0"), ('["a"]', r'label is \["a"\]')]
)
def test_labels_of_a_json_table(tmp_path, label, words):
    write_folder(tmp_path / "tools", count=2)
    for first in (f'[{{"path": "tools/hand_saw/00.jpg", "label": {label}}}]', '[{"path": 5, "label": "saw"}]'):
        (tmp_path / "tools.json").write_text(first)
        with pytest.raises(UserError, match=rf"tools\.json, item 0: ({words}|path is 5), expected a text"):
            manifest(tmp_path, "tools.json")


@pytest.mark.parametrize("subset", ["all", "base", "new"])
def test_classes_that_are_tested_only_are_refused_in_every_half(tmp_path, subset):
    for part, kinds in (("train", KINDS), ("test", (*KINDS, "zip"))):
        write_folder(tmp_path / "tools" / part, kinds=kinds, count=2)
    with pytest.raises(UserError, match="label 3, class 'zip', .*test/zip/00.jpg.*: label 3 has no training images"):
        folder_data(tmp_path, DATASET__SUBSAMPLE_CLASSES=subset)


TABLES = ("tools.csv", "absolute.csv")


def test_absolute_paths_below_the_folder(tmp_path):
    write_folder(tmp_path / "tools")
    rows = rows_with_parts()
    (tmp_path / "tools.csv").write_text(csv_of(rows))
    (tmp_path / "absolute.csv").write_text(csv_of([(str(tmp_path / path), *rest) for path, *rest in rows]))
    (tmp_path / "linked").symlink_to(tmp_path)
    digests = {manifest(root, name).split_digest for root in (tmp_path, tmp_path / "linked") for name in TABLES}
    assert len(digests) == 1


# --- what is taken, left out and said


def test_classes_that_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "tools")
    before = [path for path, label in paths(folder_data(tmp_path).test, folder) if label != 1]
    data = folder_data(tmp_path, LEAVE_OUT=["claw_hammer"])
    assert data.classnames == ["adjustable wrench", "hand saw"] and data.metadata()["left_out"] == ["claw_hammer"]
    assert [path for path, _ in paths(data.test, folder)] == before  # the others keep their split
    (folder / "cache").mkdir()
    assert folder_data(tmp_path, LEAVE_OUT=["claw_hammer", "cache"]).split_digest == data.split_digest
    (folder / "cache").rmdir()
    with pytest.raises(UserError, match=r"DATASET\.CUSTOM\.LEAVE_OUT .*claw hammer.*do you mean \[claw_hammer\]"):
        folder_data(tmp_path, LEAVE_OUT=["claw hammer"])
    with pytest.raises(UserError, match="no images in tools"):
        folder_data(tmp_path, LEAVE_OUT=list(KINDS))


def seen(dataset, shots, subset):
    """What results.json says of a run on this data set."""
    data = SimpleNamespace(NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subset)
    return images_seen(SimpleNamespace(cfg=SimpleNamespace(DATASET=data), dm=SimpleNamespace(dataset=dataset)))


def test_classes_with_fewer_images_than_shots(tmp_path):
    write_folder(tmp_path / "tools")
    write_folder(tmp_path / "tools", kinds=["bolt"], count=4)  # 2 of them to train
    keys = {"DATASET__NUM_SHOTS": 4}
    with pytest.raises(UserError, match=r"bolt \(2\).*DATASET\.FEWER_SHOTS take"):
        folder_data(tmp_path, **keys)
    data = folder_data(tmp_path, **keys, DATASET__FEWER_SHOTS="take")
    assert collections.Counter(item.classname for item in data.train_x)["bolt"] == 2 and len(data.train_x) == 14
    assert seen(data, 4, "all") == "4 shots of all classes (fewer in 1 of 4 classes, at least 2 each)"
    new = folder_data(tmp_path, **keys, DATASET__FEWER_SHOTS="take", DATASET__SUBSAMPLE_CLASSES="new")
    assert seen(new, 4, "new") == "4 shots of new classes"  # both have enough


def test_what_an_image_folder_passes_by_is_named(tmp_path, caplog):
    write_folder(tmp_path / "tools")
    for place in ("claw_hammer/more/00.jpg", "hand_saw/10.jfif", "hand_saw/.thumb.jpg"):
        path = tmp_path / "tools" / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "tools" / "hand_saw" / "00.jpg").read_bytes())
    for place in ("readme.md", "hand_saw/11.heic"):
        (tmp_path / "tools" / place).touch()
    data = folder_data(tmp_path)
    assert sum(len(part) for part in (data.train_x, data.val, data.test)) == 31  # a .jfif is a JPEG
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == 1 and said[0].endswith(
        "no images of a class: 2 files and 1 folders, readme.md, claw_hammer/more, hand_saw/11.heic"
    )
    (tmp_path / "tools" / "bolt" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="bolt holds no images, but 1 others: bolt/inner"):
        folder_data(tmp_path)


def test_copies_of_training_images_among_the_test_images_are_said(tmp_path, caplog):
    for part, seeds in (("train", (0, 1)), ("test", (2, 3))):
        for kind in KINDS:
            for seed in seeds:
                write_image(str(tmp_path / "tools" / part / kind / f"{seed}.png"), seed=10 * KINDS.index(kind) + seed)
    folder_data(tmp_path)
    assert not caplog.records
    first = (tmp_path / "tools" / "train" / "hand_saw" / "1.png").read_bytes()
    (tmp_path / "tools" / "test" / "hand_saw" / "9.png").write_bytes(first)
    folder_data(tmp_path)
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "1 test images are copies of training images" in said[0]
    assert "train/hand_saw/1.png = " in said[0] and said[0].endswith("test/hand_saw/9.png")


@pytest.mark.parametrize("content", ["[1]", "{}", '{"path"'])
def test_a_bad_json_table(tmp_path, content):
    (tmp_path / "tools.json").write_text(content)
    with pytest.raises(UserError, match="tools.json"):
        manifest(tmp_path, "tools.json")


def test_what_path_may_be(tmp_path):
    write_folder(tmp_path / "tools", count=2)
    (tmp_path / "tools.csv").write_text(csv_of([GOOD]))
    for call, error, words in (
        (lambda: folder_data(tmp_path, ""), UserError, "DATASET.CUSTOM.PATH"),
        (lambda: folder_data(tmp_path, "tool"), MissingFile, r"no .*tool .*there: tools"),
        (lambda: folder_data(tmp_path, "tools.csv"), UserError, "DATASET.NAME Manifest"),
        (lambda: manifest(tmp_path, "tools"), UserError, "DATASET.NAME ImageFolder"),
        (lambda: manifest(tmp_path, IMAGES="none"), MissingFile, "DATASET.CUSTOM.IMAGES"),
        (lambda: folder_data(tmp_path, PROMPTS=["a photo"]), UserError, r"DATASET\.CUSTOM\.PROMPTS"),
        (lambda: folder_data(tmp_path, SPLIT=[0.5, 0.2, 0.2]), UserError, r"DATASET\.CUSTOM\.SPLIT"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_half_a_split_is_no_split(tmp_path):
    write_folder(tmp_path / "tools" / "train", count=2)
    with pytest.raises(UserError, match="train, test and perhaps val; found train"):
        folder_data(tmp_path)
    write_folder(tmp_path / "tools" / "test", count=2)
    write_folder(tmp_path / "tools", kinds=["bolt"], count=2)
    with pytest.raises(UserError, match="found test, train, bolt"):
        folder_data(tmp_path)
