"""Bad input to train.py: one clear error each, before any training, nothing half-written."""

import fcntl
import os
import pickle
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import train
from dassl.clip.feature_bank import _turn
from dassl.utils import UserError
from tests.fixtures.command_line import one_error, start

# Names and values


WRONG = [
    ("--trainer CoOpp", r"--trainer .* \[.*CoOp, CoOp_LMC, .*but got \[CoOpp\] \(do you mean \[CoOp\]"),
    ("--trainer ''", "No trainer: give --trainer, one of .*CoOp, CoOp_LMC, "),
    ("DATASET.NAME OxfordPet", r"DATASET\.NAME .*Caltech101.*got \[OxfordPet\] \(do you mean \[OxfordPets\]"),
    ("--dataset-config-file ''", r"DATASET\.NAME is expected to belong to \[.*OxfordPets.*\], but got \[\]$"),
    ("--dataset-config-file configs/datasets/oxford_pet.yaml", "oxford_pet.yaml does not exist; nearest: oxford_"),
    ("--config-file configs/trainers/CoOp/nope.yaml", "nope.yaml does not exist; nearest: .*vit_b16_ep100_ctxv1"),
    ("--config-file train.py", r"train\.py: expected a \.yaml file \(a \.py file would be executed"),
    ("MODEL.BACKBONE.NAME ViT-B/17", r'"ViT-B/17" \(nearest: ViT-B/16, .*available: RN50, .*tiny, open_clip:'),
    ("MODEL.BACKBONE.NAME open_clip:ViT-B-33/x", r'open_clip model "ViT-B-33" \(nearest: ViT-B-32'),
    ("INPUT.TRANSFORMS \"('random_flipp',)\"", r"INPUT\.TRANSFORMS .*cutout.*\(do you mean \[random_flip\]"),
    ("--transforms random_flipp", r"do you mean \[random_flip\]"),
    ("OPTIM.LRR 1", r"unknown config key OPTIM\.LRR \(nearest: OPTIM\.LR, .*OPTIM has: NAME, LR,"),
    ("TRAINER.COOP.PREC fp31", r"PREC is expected to belong to \[fp32, fp16, amp, bf16\], but got \[fp31\]"),
    ("TRAINER.COOP.PREC fp16", "fp16 trains on CUDA only"),
    ("OPTIM.LR", "KEY VALUE pairs: OPTIM.LR has no value"),
    ("OPTIM.LR fast", r"OPTIM\.LR = 'fast' is a str, expected float"),
    ("OPTIM.LR -1.0", "OPTIM.LR = -1.0, expected float, at least 0"),
    ("OPTIM.MAX_EPOCH -1", "OPTIM.MAX_EPOCH = -1, expected int, at least 0"),
    ("OPTIM.NAME sdg", r"OPTIM\.NAME .*\[sdg\] \(do you mean \[sgd\]"),
    ("DATALOADER.TRAIN_X.BATCH_SIZE 0", "BATCH_SIZE = 0, expected int, at least 1"),
    ("TEST.FINAL_MODEL best", r"TEST\.FINAL_MODEL .*\[last_step, best_val\], but got \[best\]"),
    ("TEST.SPLIT tst", r"TEST\.SPLIT .*\[val, test\], but got \[tst\]"),
    ("DATASET.SUBSAMPLE_CLASSES bas", r"to belong to \[all, base, new\], but got \[bas\]"),
    ("DATASET.NUM_SHOTS 19", r"19 shots asked for.*abyssinian \(18\).*At most 18 shots"),
    ("--eval-only", "Nothing to evaluate: --model-dir names the folder of a trained CoOp"),
    ("--trainer CoOp_LMC", "CoOp_LMC continues a stage-1 run: name its folder with --resume-coop"),
]


@pytest.mark.parametrize(("words", "match"), WRONG, ids=[words for words, _ in WRONG])
def test_wrong_names_and_values(refused, words, match):
    refused(match, *shlex.split(words))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("OPTIM: {LR: fast}", r"own\.yaml: OPTIM\.LR = 'fast' is a str"),
        ("OPTIM: [1", r"own\.yaml is not valid yaml"),
        ("_BASE_: 3", r"own\.yaml: _BASE_ is 3, expected a file name"),
        ("_FINAL_: 3", r"own\.yaml: _FINAL_ is 3, expected KEY: value"),
        ('X: !!python/object/apply:os.mkdir ["ran"]', r"own\.yaml is not valid yaml: could not determine"),
    ],
)
def test_broken_config_files(refused, tmp_path, text, match):
    (tmp_path / "own.yaml").write_text(text)
    refused(match, "--config-file", tmp_path / "own.yaml")
    assert not Path("ran").exists()


def test_folders_that_hold_nothing(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "nowhere"):
        nothing = r'at ".*prompt_learner": looked for .*model\.pth\.tar-N, found no model'
        refused(nothing, "--eval-only", "--model-dir", folder)
        refused(rf"No stage-1 checkpoint in {folder}: looked", "--resume-coop", folder, trainer="CoOp_LMC")
    refused(rf'Nothing to resume in "{folder}"', "--resume", folder)  # an empty one: from scratch, as in Dassl


def test_an_output_folder_that_is_a_file(argv, tmp_path):
    (tmp_path / "out").write_text("mine")
    for name in ("out", "out/below"):
        with pytest.raises(UserError, match=rf'Cannot write to the folder "{tmp_path}/{name}"'):
            train.main(argv(name=name))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_feature_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "features").write_text("mine")
    refused(rf'Cannot write to the folder "{tmp_path}/features/')


def test_folders_whose_names_are_no_utf8(argv, tmp_path):
    """As of an old file system."""
    place = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"))
    line = argv(name=os.path.basename(place))
    assert train.main(line)["total"] == 12
    assert "No curves for TensorBoard" in Path(place, "log.txt").read_text()
    assert {"log.txt", "results.json", "config.yaml"} < set(os.listdir(place))
    assert train.main([*line, "--overwrite", "FEATURES.DIR", place])["total"] == 12  # in safetensors, too


# Data


def test_missing_data_says_what_where_and_from_where(refused, tmp_path, data):
    source = r"images: www\.robots.*split_zhou_OxfordPets\.json: https://drive"
    refused(rf"OxfordPets: the data root {tmp_path}/nowhere is no folder.*{source}", root=tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    refused(rf"no folder oxford_pets or .* below {tmp_path}/bare .*{source}", root=tmp_path / "bare")
    (data / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    refused(rf"no split file {data}/oxford_pets/split_zhou_OxfordPets\.json.*{source}", root=data)
    refused("OxfordPets: no data root given", "--root", "")


@pytest.fixture
def data(pets_root, tmp_path):
    """A copy of the images, of which single ones may be replaced."""
    return Path(shutil.copytree(pets_root, tmp_path / "data", copy_function=os.link))


def spoil(data, name, content):
    path = data / "oxford_pets" / "images" / name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:200] if content == "cut" else content)
    return path


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", "cut"], ids=["empty", "page", "cut"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("beagle_3.png", ""),
        ("beagle_3.png", "FEATURES.VIEWS 2"),
        ("beagle_25.png", ""),
        ("beagle_20.png", "TEST.FINAL_MODEL best_val DATASET.NUM_SHOTS 0"),
    ],
    ids=["training from pixels", "training from the bank", "test", "validation"],
)
def test_an_image_that_cannot_be_read_stops_the_run_before_training(refused, data, name, words, content):
    path = spoil(data, name, content)
    refused(rf'^Image "{path}" cannot be read \(\d+ bytes\)', *words.split(), root=data)


def test_a_run_that_failed_at_its_test_goes_on_there(argv, data, tmp_path):
    """Without the bank the test images are not read before the end."""
    whole = (data / "oxford_pets" / "images" / "beagle_25.png").read_bytes()
    path = spoil(data, "beagle_25.png", b"")
    line = argv("FEATURES.TEST", "False", root=data)
    with pytest.raises(UserError, match=str(path)):
        train.main(line)
    assert (tmp_path / "out" / "resume.pt").exists() and not (tmp_path / "out" / "results.json").exists()
    path.write_bytes(whole)
    assert train.main(line)["total"] == 12
    assert "2 epochs are done" in "".join(p.read_text() for p in (tmp_path / "out").glob("log*.txt"))


def test_a_worker_process_fails_with_the_same_line(argv, data):
    path = spoil(data, "beagle_3.png", b"")
    error = one_error(start(argv("DATALOADER.NUM_WORKERS", "1", root=data)))
    assert error.startswith(f'Image "{path}" cannot be read (0 bytes)')


def test_a_failed_bank_lets_the_next_one_in(tmp_path):
    """The workers of a failed build may live on; they hold the lock file, but must not hold the lock."""
    with _turn(tmp_path / "bank"):
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    try:
        with open(tmp_path / "bank" / ".lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


# Checkpoints and weights


class Program:
    """Pickled, it makes a folder when somebody unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def write_file(path, kind, mark):
    """A file of a kind that nobody should load."""
    path.parent.mkdir(parents=True, exist_ok=True)
    good = {"state_dict": {"ctx": torch.zeros(4, 128)}, "epoch": 1}
    if kind == "truncated":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "foreign":
        path.write_bytes(b"hello world\n")
    elif kind == "other object":
        torch.save({"state_dict": {"ctx": "words"}}, path)
    elif kind == "program":
        torch.save(good | {"optimizer": Program(mark)}, path)
    elif kind == "old program":
        torch.save(good | {"optimizer": Program(mark)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Program(mark)))
    return path


@pytest.mark.parametrize("kind", ["truncated", "foreign", "other object", "program", "old program", "pickle"])
def test_files_that_nobody_should_load(refused, tmp_path, kind):
    mark = tmp_path / "ran"
    path = write_file(tmp_path / "theirs" / "prompt_learner" / "model.pth.tar-1", kind, mark)
    named = f"{path}.*(damaged|refused|does not fit|no plain tensor|cannot read|holds no CLIP|holds no weights)"
    refused(named, "--eval-only", "--model-dir", tmp_path / "theirs")
    refused(named, "--resume-coop", tmp_path / "theirs", trainer="CoOp_LMC")
    refused(named, "MODEL.BACKBONE.NAME", path)
    refused(named, "MODEL.BACKBONE.NAME", "ViT-B/16", "MODEL.BACKBONE.PATH", path)
    (path.parent / "checkpoint").write_text(path.name)
    refused(named, "--resume", tmp_path / "theirs")
    write_file(tmp_path / "out" / "resume.pt", kind, mark)
    refused(f"{tmp_path}/out/resume.pt", leaves=["resume.pt"])
    assert not mark.exists()


def test_a_stage_1_with_damaged_results_is_named(refused, tmp_path):
    folder = tmp_path / "theirs"
    path = folder / "prompt_learner" / "model.pth.tar-1"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 128)}}, path)
    (folder / "results.json").write_text("{")
    refused(f'"{folder}/results.json" is not a JSON file', "--resume-coop", folder, trainer="CoOp_LMC")
    (folder / "results.json").unlink()
    torch.save({"state_dict": {"ctx": torch.full((4, 128), float("nan"))}}, path)
    refused(f"{path}: ctx is infinite or NaN", "--resume-coop", folder, trainer="CoOp_LMC")
