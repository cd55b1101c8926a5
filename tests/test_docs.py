"""Every command and example of README and docs, run on small data; and what pages say in tables is what is so."""

import json

import pytest
from yacs.config import CfgNode

import condu.trainer  # noqa: F401  registers
import datasets
import mergetune.trainers  # noqa: F401  registers
from dassl.config import leaves, read_yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from datasets.protocol import FewShotDataset, same_template
from mergetune.trainers.coop import CoOp
from scripts.commands import COMMANDS
from scripts.jobs import PAIRS, cell_steps
from tests.conftest import ROOT, write_image
from tests.fixtures.image_folders import write_split
from tests.fixtures.mtil_folders import write_oxford_pet
from tests.fixtures.pages import PAGES, Desk, table, ticked

# Commands that another test runs
ELSEWHERE = {
    "bash tests/run.sh": "tests/run.sh",  # runs this
    "python tests/benchmarks/": "tests/test_benchmarks.py",
    "python -m mergetune.import_checkpoint": "tests/test_import_checkpoint.py",
    "python -m condu.import_released": "tests/test_import_released.py",
    "bash scripts/condu/toy_stream.sh": "tests/test_toy_stream.py",
    "python -m tests.benchmarks": "tests/test_benchmark_table.py",
    "python tests/faults/run.py": "tests/test_faults.py",
    "python tests/fuzz/run.py": "tests/test_fuzz.py",
    "python tests/fuzz/guided.py": "tests/test_fuzz.py",
    "bash train.sh --all": "tests/test_flow.py",
    "bash scripts/try_slurm.sh": "tests/test_flow.py",  # its grid; a Slurm needs root
    "bash scripts/release_check.sh": "tests/test_packaging.py",
}
datasets.register_all()
PRESETS = ("released", "paper", "continued")
TOOLS = ("adjustable_wrench", "claw_hammer", "hand_saw")


def write_shifts(root):
    """The shifted test sets of the small ImageNet's four classes."""
    names = [line.split() for line in (root / "imagenet" / "classnames.txt").read_text().splitlines()]
    folders = ["imagenet-sketch/images", "imagenet-adversarial/imagenet-a", "imagenet-rendition/imagenet-r"]
    places = [root / folder / wnid for folder in folders for wnid, *_ in names]
    places += [root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(i) for i in range(len(names))]
    places += [root / "objectnet" / "images" / wnid for wnid, *_ in names]
    for place in places:
        for i in range(2):
            write_image(place / f"{i}.jpg", i)
    classes = {wnid: " ".join(words) for wnid, *words in names}
    (root / "objectnet" / "classes.json").write_text(json.dumps(classes))


@pytest.fixture(scope="module")
def data(tmp_path_factory, pets_root, imagenet_root):
    """A data root with all that the pages name, a few pictures each."""
    root = tmp_path_factory.mktemp("data")
    (root / "oxford_pets").symlink_to(pets_root / "oxford_pets")
    (root / "imagenet").symlink_to(imagenet_root / "imagenet")
    for folder, images, name in (
        ("caltech-101", "101_ObjectCategories", "Caltech101"),
        ("dtd", "images", "DescribableTextures"),
        ("my_birds", "images", "MyBirds"),
    ):
        write_split(str(root / folder), images, f"split_zhou_{name}.json")
    write_shifts(root)
    write_oxford_pet(root)
    for kind in TOOLS:
        for i in range(10):
            write_image(root / "tools" / kind / f"{i:02d}.jpg", i)
    return root


@pytest.fixture
def desk(tmp_path, data, monkeypatch):
    """A desk whose examples leave the registries as they are."""
    for registry in (DATASET_REGISTRY, TRAINER_REGISTRY):
        ours = {name: kind for name, kind in registry._obj_map.items() if kind.__module__ != "builtins"}
        monkeypatch.setattr(registry, "_obj_map", ours)
    return Desk(tmp_path / "desk", data, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "costs.md"])
def test_every_command_and_example_of_a_page_runs(page, desk):
    for picture in ("cat", "dog"):
        write_image(desk.folder / f"{picture}.jpg", 1)
    scope = {"TRAINER_REGISTRY": TRAINER_REGISTRY, "DATASET_REGISTRY": DATASET_REGISTRY, "CoOp": CoOp, "CN": CfgNode}
    scope |= {"FewShotDataset": FewShotDataset, "same_template": same_template}  # of README's short examples
    desk.page(PAGES[page], scope if page == "README.md" else {}, tuple(ELSEWHERE))


def test_what_other_tests_run_has_such_a_test():
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


# --- reproduce.md


@pytest.mark.parametrize("trainer", ["CoOp_LMC", "KgCoOp_LMC", "MMA_LMC", "PromptKD_LMC"])
def test_the_presets_are_as_the_tables_say(trainer):
    heading = "CoOp_LMC, KgCoOp_LMC" if "CoOp" in trainer else trainer
    presets = [dict(leaves(read_yaml(ROOT / "configs" / "trainers" / trainer / f"{n}.yaml"))) for n in PRESETS]
    for name, *values in table("reproduce.md", heading):
        (key,) = ticked(name)
        assert [str(preset[key]) for preset in presets] == values, key


def test_the_number_of_runs_is_that_of_the_plan():
    for name, runs, trainings in table("reproduce.md", "pair, base-to-new"):
        steps = cell_steps(name, "base2new", "caltech101", 1)
        trained = [step for step in steps if not COMMANDS[step.command].evaluates and "train" in step.command]
        assert [str(len(steps)), str(len(trained))] == [runs, trainings]
    assert {row[0] for row in table("reproduce.md", "pair, base-to-new")} == set(PAIRS)


# --- costs.md


def test_the_speed_table_is_readmes():
    assert table("costs.md", "step") == table("README.md", "step")
    for _, *cells in table("costs.md", "peak memory of a step"):
        assert all(cell.removesuffix(" MB") in PAGES["README.md"] for cell in cells)


def test_files_are_as_large_as_the_page_says(desk):
    desk.page(PAGES["costs.md"], {}, tuple(ELSEWHERE))
    for name, size in table("costs.md", "file, built-in CLIP, ToyDigits"):
        found = (desk.folder / ticked(name)[0]).stat().st_size
        assert found == pytest.approx(int(size.replace(",", "")), rel=0.02)
    banks = (desk.folder / "output/costs/features").rglob("*.safetensors")
    assert {(file.stat().st_size - 184) % (4 * 128) for file in banks} == {0}
