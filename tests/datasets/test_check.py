"""python -m datasets check and links: one row for each set, what is wrong and what may be the reason."""

import hashlib
import json
import os
import re
import shutil

import pytest

import datasets
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.tools.command import main
from datasets.tools.known import COOP, KNOWN, MTIL, OFFICIAL, Known
from tests.fixtures.image_folders import config, write_imagenet, write_pets, write_split
from tests.fixtures.interpreter import Python
from tests.fixtures.mtil_folders import WRITERS, write_mnist

datasets.register_all()


@pytest.fixture
def check(capsys, tmp_path):
    """check(names...) -> (exit code, {data set: row}, what was printed)."""

    def run(*words):
        file = tmp_path / "rows.json"
        code = main(["check", "--root", str(tmp_path), "--json", str(file), *words])
        rows = {row["dataset"]: row for row in json.loads(file.read_text())}
        file.unlink()
        return code, rows, capsys.readouterr().out

    return run


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """OxfordPets of a few images, for which the tables know just these."""
    write_pets(tmp_path)
    digest = build_dataset(config(tmp_path, "OxfordPets")).split_digest
    monkeypatch.setitem(KNOWN, "OxfordPets", Known(3, 18, 15, 6, digest))
    return tmp_path / "oxford_pets"


def test_all_is_well(check, pets):
    code, rows, out = check("oxford_pets", "--decode", "all")
    assert code == 0 and rows["OxfordPets"] == {
        "dataset": "OxfordPets",
        "folder": "oxford_pets",
        "split": "published",
        "classes": 3,
        "train": 18,
        "val": 15,
        "test": 6,
        "missing": 0,
        "unreadable": 0,
        "status": "ok",
        "problems": [],
        "notes": [],
    }
    head, line = out.strip().splitlines()
    assert head.split() == [key for key in rows["OxfordPets"] if key not in ("problems", "notes")]
    assert " ".join(line.split()) == "OxfordPets oxford_pets published 3 18 15 6 0 0 ok"


def test_sets_that_nobody_named_may_be_absent(check, pets):
    code, rows, out = check("--protocol", "coop")
    assert code == 0 and list(rows) == list(COOP)
    assert {name for name, row in rows.items() if row["status"] != "not found"} == {"OxfordPets"}
    assert len(out.strip().splitlines()) == 1 + len(COOP)
    assert check("oxford_pets", "sun397")[0] == 1
    assert check("sun397", "UCF101")[0] == 2


def test_nothing_there(capsys, tmp_path):
    assert main(["check", "--root", str(tmp_path / "no")]) == 2
    assert "nothing found below" in capsys.readouterr().out


def test_counts_and_the_content_of_the_split(check, pets, monkeypatch):
    found = KNOWN["OxfordPets"]
    monkeypatch.setitem(KNOWN, "OxfordPets", Known(37, 2944, 15, 6, found.split))
    code, rows, _ = check("OxfordPets")
    assert code == 1 and rows["OxfordPets"]["problems"] == [
        "3 classes instead of 37, 18 training images instead of 2,944"
    ]
    monkeypatch.setitem(KNOWN, "OxfordPets", found._replace(split="0" * 16))
    _, rows, _ = check("OxfordPets")
    assert rows["OxfordPets"]["split"] == "as found"
    assert f"not the published one (content {found.split}" in rows["OxfordPets"]["problems"][0]


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("test", lambda own, train: own + own[:1], ["7 test images instead of 6", "1 of 7 test images stand"]),
        ("test", lambda own, train: own[1:], ["5 test images instead of 6"]),
        ("test", lambda own, train: own[1:] + train[:1], ["content", "1 images are in both the training and the test"]),
        ("train", lambda own, train: own[:-1] + own[-2:-1], ["content", "1 of 18 training images stand in the list"]),
        ("train", lambda own, train: own, []),
    ],
)
def test_a_run_says_of_a_public_set_that_its_lists_are_not_the_published_ones(pets, capsys, part, change, words):
    file = pets / "split_zhou_OxfordPets.json"
    split = json.loads(file.read_text())
    file.write_text(json.dumps(split | {part: change(split[part], split["train"])}))
    capsys.readouterr()
    build_dataset(config(pets.parent, "OxfordPets", VERBOSE=True))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OxfordPets: ")]
    assert len(said) == len(words)
    assert all(any(word in line for line in said) for word in words)
    assert sum("not the published lists" in line for line in said) == bool(words)


def test_draws_are_compared_with_the_published_ones(check, tmp_path, monkeypatch):
    """Published: 16 training and 4 validation images of seeds 1, 2, 3, by their paths."""
    write_pets(tmp_path, counts=(20, 6, 1))
    seeds = [build_dataset(config(tmp_path, "OxfordPets", DATASET__NUM_SHOTS=16, SEED=s)).drawn for s in (1, 2, 3)]

    def sha(text):
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    for drawn, problems in ((seeds, 0), (seeds[::-1], 1)):
        published = sha(" ".join(sha("\n".join(draw[part])) for draw in drawn for part in ("train", "val")))
        monkeypatch.setitem(KNOWN, "OxfordPets", Known(3, 60, 18, 3, draws=published))
        code, rows, _ = check("OxfordPets")
        assert code == len(rows["OxfordPets"]["problems"]) == problems
    assert "draws of seeds 1, 2 and 3 are not the published ones" in rows["OxfordPets"]["problems"][0]


def test_missing_and_unreadable_images(check, pets):
    images = pets / "images"
    (images / "cat_0.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (images / "cat_1.png").write_text("\n<!DOCTYPE html><title>Quota exceeded</title>")
    (images / "cat_2.png").write_bytes(b"")
    (images / "cat_3.png").write_bytes((images / "cat_4.png").read_bytes()[:-60])
    code, rows, _ = check("OxfordPets", "--decode", "all")
    (problem,) = rows["OxfordPets"]["problems"]
    assert code == 1 and rows["OxfordPets"]["unreadable"] == 4
    assert re.match(r"4 images cannot be read: .*cat_0\.png.* is a Git LFS pointer", problem)
    assert check("OxfordPets", "--decode", "none")[0] == 0
    from dassl.data.datasets import unreadable

    items = build_dataset(config(pets.parent, "OxfordPets")).train_x
    said = {os.path.basename(item.impath): "".join(unreadable([item])) for item in items}
    assert "web page" in said["cat_1.png"] and "empty" in said["cat_2.png"] and "cannot be read" in said["cat_3.png"]
    assert said["cat_4.png"] == ""
    for path in (images / "dog_13.png", images / "dog_14.png"):
        path.unlink()
    _, rows, _ = check("OxfordPets")
    assert rows["OxfordPets"]["missing"] == 2 and rows["OxfordPets"]["status"] == "problem"


def test_old_pickles_are_a_note(check, pets):
    (pets / "split_fewshot").mkdir()
    (pets / "split_fewshot" / "shot_16-seed_1.pkl").write_bytes(b"never opened")
    code, rows, out = check("OxfordPets")
    assert code == 0 and "import-subset" in rows["OxfordPets"]["notes"][0] and "import-subset" in out


def nest(folder, name):
    (folder / name).rename(folder / "kept")
    (folder / name).mkdir()
    (folder / "kept").rename(folder / name / name)


def cars_nested(root):
    folder = root / "stanford_cars"
    write_split(folder, "", "split_zhou_StanfordCars.json", pattern="cars_train/{i:05d}.jpg")
    nest(folder, "cars_train")


def packed(root):
    (root / "oxford_pets").mkdir()
    (root / "oxford_pets" / "images.tar.gz").touch()


def packed_beside(root):
    (root / "EuroSAT.zip").touch()


def misspelt(root):
    (root / "Oxford_Pets").mkdir()


def image_folder_misspelt(root):
    write_pets(root)
    (root / "oxford_pets" / "images").rename(root / "oxford_pets" / "Images")


def aircraft_as_unpacked(root):
    (root / "fgvc_aircraft" / "data" / "images").mkdir(parents=True)
    (root / "fgvc_aircraft" / "images").mkdir()
    (root / "fgvc_aircraft" / "data" / "variants.txt").write_text("707-320\n")


def flat_imagenet(root):
    folder = write_imagenet(root)
    for path in list((root / folder / "images" / "val").rglob("*.JPEG")):
        path.rename(root / folder / "images" / "val" / path.name)
    for path in (root / folder / "images" / "val").glob("n0?"):
        path.rmdir()


def mat_is_a_page(root):
    folder = WRITERS["Flowers"](root)
    (folder / "setid.mat").write_text("<html>")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("StanfordCars", cars_nested, ["cars_train/cars_train is one folder too many"]),
        ("OxfordPets", packed, ["images.tar.gz", "may not be unpacked"]),
        ("EuroSAT", packed_beside, ["EuroSAT.zip", "may not be unpacked"]),
        ("OxfordPets", misspelt, ["Oxford_Pets is spelt otherwise: rename it to oxford_pets"]),
        ("OxfordPets", image_folder_misspelt, ["no image folder images", "there: Images"]),
        ("FGVCAircraft", aircraft_as_unpacked, ["variants.txt lies in data/"]),
        ("ImageNet", flat_imagenet, ["val has no class folders", "sorted into one folder a class"]),
        ("MtilFlowers", mat_is_a_page, ["setid.mat is damaged or no MATLAB file"]),
    ],
)
def test_usual_mistakes_are_named(check, tmp_path, name, make, words):
    make(tmp_path)
    code, rows, out = check(name)
    assert code != 0 and rows[name]["status"] != "ok"
    for word in words:
        assert word in " ".join(rows[name]["problems"]) and word in out


def test_arrays_are_checked_like_files(check, tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setitem(KNOWN, "MtilMNIST", Known(3, 12, 0, 6))
    code, rows, _ = check("mtil/mnist", "--decode", "all")
    assert code == 0 and rows["MtilMNIST"]["split"] == "lists" and rows["MtilMNIST"]["unreadable"] == 0


def test_a_name_that_is_none(capsys, tmp_path):
    from dassl.utils import UserError

    with pytest.raises(UserError, match="no data set caltech_102; nearest: Caltech101"):
        main(["check", "caltech_102", "--root", str(tmp_path)])
    with pytest.raises(UserError, match="ToyColours is no public data set"):
        main(["check", "ToyColours", "--root", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["check", "--decode", "some"])


def test_the_shell_command_works_from_any_folder(clone, pets, tmp_path):
    (tmp_path / "elsewhere" / "datasets").mkdir(parents=True)
    (tmp_path / "elsewhere" / "datasets" / "__init__.py").touch()
    shutil.rmtree(pets)
    from tests.conftest import ROOT

    words = ("bash", ROOT / "scripts" / "data.sh", "check", "OxfordPets")
    done = clone(*words, data=tmp_path, cwd=tmp_path / "elsewhere", check=False)
    assert done.returncode == 2 and "OxfordPets  -" in done.stdout
    process = Python(["datasets/__main__.py", "check", "no_such_set"])
    assert process.communicate()[1].startswith("error: no data set no_such_set") and process.returncode == 1


# --- what is known


def test_every_public_set_is_registered_and_has_its_links(capsys):
    assert sorted(KNOWN) == sorted(name for names in OFFICIAL for name in names)
    assert KNOWN.keys() <= set(DATASET_REGISTRY.registered_names())
    assert main(["links"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: below the data root" in out for name in KNOWN)
    assert main(["links", "sun397", "mtil/cifar100"]) == 0
    out = capsys.readouterr().out
    assert "8ca2778205c41d23104230ba66911c7a" in out and "dead since 2025" in out and "split_zhou_SUN397.json" in out
    assert "cifar-100-python.tar.gz  md5 eb9058c3a382ffc7106e4002c42a8d85" in out


def test_known_counts_add_up():
    """Of MTIL: 1,201 classes, 319,352 training and 97,209 test images. Of CoOp: 11 training sets."""
    assert [sum(getattr(row, part) for row in MTIL.values()) for part in ("classes", "train", "test")] == [
        1201,
        319_352,
        97_209,
    ]
    assert sum(row.train > 0 for row in COOP.values()) == 11
    assert {name for name, row in COOP.items() if row.draws} == {name for name, row in COOP.items() if row.val}
