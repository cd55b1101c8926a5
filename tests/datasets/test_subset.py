"""Few-shot draws as files: a run is given another run's draw, and other programs' pickles become such files."""

import json
import pickle
import sys
import types

import pytest

import datasets
import train
from dassl.data.datasets import build_dataset
from dassl.utils import MissingFile, UserError
from datasets.tools.command import main
from tests.fixtures.image_folders import config, write_imagenet, write_pets
from tests.fixtures.mtil_folders import write_mnist

datasets.register_all()


def pets(root, **keys):
    return build_dataset(config(root, "OxfordPets", **{f"DATASET__{key}": value for key, value in keys.items()}))


def paths(items):
    return [item.impath for item in items]


@pytest.fixture
def drawn(tmp_path):
    """A draw of seed 1, as a run keeps it; the file."""
    write_pets(tmp_path)
    content = pets(tmp_path, NUM_SHOTS=2).drawn
    (tmp_path / "subset.json").write_text(json.dumps(content))
    return tmp_path / "subset.json"


def test_a_run_repeats_another_runs_draw(tmp_path, drawn):
    first = pets(tmp_path, NUM_SHOTS=2)
    cfg = config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=2, SEED=7, DATASET__SUBSET=str(drawn))
    again = build_dataset(cfg)
    other = build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=2, SEED=7))
    assert paths(again.train_x) == paths(first.train_x) != paths(other.train_x)
    assert paths(again.val) == paths(first.val) and paths(again.test) == paths(first.test)
    assert again.drawn == first.drawn  # the run keeps it under the seed that drew it


def test_halves_of_a_given_draw(tmp_path, drawn):
    whole = pets(tmp_path, NUM_SHOTS=2)
    halves = [pets(tmp_path, NUM_SHOTS=2, SUBSET=str(drawn), SUBSAMPLE_CLASSES=part) for part in ("base", "new")]
    assert sum((paths(half.train_x) for half in halves), []) == paths(whole.train_x)


def test_a_hand_made_draw_keeps_its_order(tmp_path, drawn):
    content = json.loads(drawn.read_text())
    content["train"].reverse()
    content["val"] = "all"
    drawn.write_text(json.dumps(content))
    data = pets(tmp_path, NUM_SHOTS=2, SUBSET=str(drawn))
    assert [data.relative(item) for item in data.train_x] == content["train"]

    assert len(data.val) == 15


def test_a_draw_that_was_changed_is_said(tmp_path, drawn, capsys):
    pets(tmp_path, NUM_SHOTS=2, SUBSET=str(drawn))
    assert not capsys.readouterr().out
    content = json.loads(drawn.read_text())
    for images in (content["train"][1:], [*content["train"], content["train"][0]]):
        drawn.write_text(json.dumps(content | {"train": images}))
        pets(tmp_path, NUM_SHOTS=2, SUBSET=str(drawn))
        assert capsys.readouterr().out == f"{drawn}: these are not the training images that seed 1 draws\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "Food101"}, "was drawn for data set Food101, but this run has OxfordPets"),
        ({"split": "0" * 16}, "was drawn for split 0000000000000000"),
        ({"shots": 4}, r"was drawn for DATASET\.NUM_SHOTS 4, but this run has 2"),
        ({"format": 2}, "is no subset: expected format 1"),
        ({"train": None}, "train is None, expected a list of paths"),
        ({"train": []}, "no training images of 3 classes: cat"),
        ({"train": ["cat_0.png"]}, "no training images of 2 classes: dog"),
        ({"train": ["cat_0.png", "cat_99.png"]}, "1 of 2 paths are not in the split's list: cat_99.png"),
    ],
)
def test_a_draw_that_does_not_fit(tmp_path, drawn, change, words):
    drawn.write_text(json.dumps(json.loads(drawn.read_text()) | change))
    with pytest.raises(UserError, match=words):
        pets(tmp_path, NUM_SHOTS=2, SUBSET=str(drawn))


def test_a_draw_that_is_not_there(tmp_path, drawn):
    with pytest.raises(MissingFile, match="absent.json"):
        pets(tmp_path, NUM_SHOTS=2, SUBSET=str(tmp_path / "absent.json"))


def test_the_flag_of_train_py(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = train.build_parser().parse_intermixed_args(["--trainer", "CoOp", "--subset", "subset.json"])
    assert str(tmp_path / "subset.json") == train.setup_cfg(args).DATASET.SUBSET


# --- other programs' pickles


class Datum:
    """Pickled under the module path and with the attributes that such files have."""

    def __init__(self, impath, label, classname):
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


@pytest.fixture
def foreign(monkeypatch):
    """foreign(file, tree): a pickle as another program, on another machine, writes it."""
    module = types.ModuleType("dassl.data.datasets.base_dataset")
    module.Datum = Datum

    def write(file, tree, protocol=pickle.HIGHEST_PROTOCOL):
        file.parent.mkdir(parents=True, exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            patch.setattr(Datum, "__module__", module.__name__)
            file.write_bytes(pickle.dumps(tree, protocol=protocol))
        return file

    return write


def theirs(items, folder="/home/someone/data/oxford_pets/images"):
    return [Datum(f"{folder}/{item.impath.split('/images/')[-1]}", item.label, item.classname) for item in items]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickled_draw_becomes_a_subset(tmp_path, foreign, protocol):
    write_pets(tmp_path)
    source = pets(tmp_path, NUM_SHOTS=2)
    tree = {"train": theirs(source.train_x), "val": theirs(source.val)}
    file = foreign(tmp_path / "split_fewshot" / "shot_2-seed_5.pkl", tree, protocol)
    out = tmp_path / "out.json"
    assert main(["import-subset", str(file), "oxford_pets", "--root", str(tmp_path), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert (content["shots"], content["seed"], content["sampler"]) == (2, 5, "imported")
    data = pets(tmp_path, NUM_SHOTS=2, SUBSET=str(out))
    assert paths(data.train_x) == paths(source.train_x) and paths(data.val) == paths(source.val)


def test_imagenets_draw_has_training_images_only(tmp_path, foreign):
    write_imagenet(tmp_path)
    data = build_dataset(config(tmp_path, "ImageNet"))
    picked = [data.train_x[i] for i in (4, 0, 7, 5, 14, 10)]
    records = theirs(picked, "/ssd/imagenet/images")
    file = foreign(tmp_path / "shot_2-seed_1.pkl", {"train": records})
    out = tmp_path / "out.json"
    main(["import-subset", str(file), "imagenet", "--root", str(tmp_path), "--out", str(out)])
    again = build_dataset(config(tmp_path, "ImageNet", DATASET__NUM_SHOTS=2, DATASET__SUBSET=str(out)))
    assert paths(again.train_x) == paths(picked) and again.val is again.test


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("shot_2-seed_1.pkl", lambda d: setattr(d, "_label", 2), "is 'cat', label 2, but here 'cat', label 0"),
        ("shot_2-seed_1.pkl", lambda d: setattr(d, "_classname", "tabby"), "is 'tabby', label 0, but here 'cat'"),
        ("shot_2-seed_1.pkl", lambda d: setattr(d, "_impath", "/x/tom.png"), "/x/tom.png is not in the list"),
        ("shot_1-seed_1.pkl", lambda d: None, "2 images of a class, more than 1 shots"),
        ("draw.pkl", lambda d: None, "does not say how many shots"),
    ],
)
def test_a_pickle_that_does_not_fit(tmp_path, foreign, name, spoil, words):
    write_pets(tmp_path)
    records = theirs(pets(tmp_path, NUM_SHOTS=2).train_x)
    spoil(records[0])
    file = foreign(tmp_path / name, {"train": records})
    with pytest.raises(UserError, match=words):
        main(["import-subset", str(file), "OxfordPets", "--root", str(tmp_path), "--out", str(tmp_path / "o.json")])
    assert not (tmp_path / "o.json").exists()


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("touch hacked",)


@pytest.mark.parametrize("tree", [{"train": [Bomb()]}, [1, 2], {"train": "all"}, {"train": [1]}])
def test_a_pickle_of_something_else(tmp_path, monkeypatch, tree):
    monkeypatch.chdir(tmp_path)
    write_pets(tmp_path)
    file = tmp_path / "shot_2-seed_1.pkl"
    file.write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match="shot_2-seed_1.pkl"):
        main(["import-subset", str(file), "OxfordPets", "--root", str(tmp_path)])
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "subset.json").exists()


def test_draws_of_arrays(tmp_path):
    write_mnist(tmp_path)
    first = build_dataset(config(tmp_path, "MtilMNIST", DATASET__NUM_SHOTS=2))
    (tmp_path / "subset.json").write_text(json.dumps(first.drawn))
    keys = {"DATASET__NUM_SHOTS": 2, "SEED": 9, "DATASET__SUBSET": str(tmp_path / "subset.json")}
    assert paths(build_dataset(config(tmp_path, "MtilMNIST", **keys)).train_x) == paths(first.train_x)
