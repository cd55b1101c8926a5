"""Runs of train.py that break off, are told to stop or find their folder taken; what is left, and how it goes on."""

import json
import signal
from pathlib import Path

import pytest
import torch

import train
from dassl.utils import UserError
from tests.fixtures.command_line import one_error, read_until, start


@pytest.fixture(autouse=True)
def one_thread():
    """As in the other processes: more threads sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def context(folder, name="prompt_learner", file="model.pth.tar-2"):
    return torch.load(Path(folder) / name / file, weights_only=True)["state_dict"]["ctx"]


def test_seed_0_is_a_seed_and_a_cpu_serves_where_a_gpu_was_asked_for(argv, tmp_path):
    words = ["TRAINER.COOP.CTX_INIT", "False", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "True"]
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        results = train.main(argv(*words, "--seed", seed, name=name))
        assert results["seed"] == seed
        assert torch.cuda.is_available() or results["device"].startswith("cpu")
        found[name] = context(tmp_path / name)
    assert torch.equal(found["a"], found["b"])
    assert not torch.equal(found["a"], found["c"])
    drawn = [json.loads((tmp_path / name / "subset.json").read_text())["train"] for name in "abc"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_finished_folder_is_left_alone_until_told_otherwise(argv, tmp_path):
    train.main(argv())
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f'"{tmp_path}/out" holds a finished run of another recipe: OPTIM.LR'):
        train.main(argv("OPTIM.LR", "0.1"))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files
    before = context(tmp_path / "out")
    train.main(argv("OPTIM.LR", "0.1", "--overwrite"))
    assert not torch.equal(context(tmp_path / "out"), before)


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_LMC"])
def test_nan_names_the_place_and_leaves_the_last_good_state(argv, refused, trainer, tmp_path):
    train.main(argv(name="stage1"))
    words = ["OPTIM.LR", "1e30", "OPTIM.WARMUP_EPOCH", "-1", "--resume-coop", tmp_path / "stage1"]
    match = rf"infinite or NaN! \(epoch 2, batch 1; last good checkpoint: {tmp_path}/out/\S+\)$"
    best = ["prompt_mid_learner/checkpoint", "prompt_mid_learner/model-best.pth.tar"]
    refused(match, *words, trainer=trainer, leaves=["resume.pt", *best])
    state = torch.load(tmp_path / "out" / "resume.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(part["model"]["ctx"].isfinite().all() for part in state["models"].values())


def test_a_checkpoint_of_nan_weights_is_not_evaluated(argv, refused, tmp_path):
    train.main(argv(name="stage1"))
    file = tmp_path / "stage1" / "prompt_learner" / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["ctx"][0, 0] = float("nan")
    torch.save(checkpoint, file)
    refused(r"tar-2 is not of the run of .*results\.json", "--eval-only", "--model-dir", tmp_path / "stage1")
    (tmp_path / "stage1" / "results.json").unlink()
    refused(r"model\.pth\.tar-2: ctx is infinite or NaN", "--eval-only", "--model-dir", tmp_path / "stage1")


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_LMC"])
def test_a_killed_run_goes_on_to_the_same_bits(argv, trainer, tmp_path):
    train.main(argv("OPTIM.MAX_EPOCH", "1", name="stage1"))
    words = ["OPTIM.MAX_EPOCH", "6", "DATALOADER.TRAIN_X.BATCH_SIZE", "8", "TRAIN.PRINT_FREQ", "1"]
    words += ["TRAIN.RESUME_SECONDS", "0", "--resume-coop", tmp_path / "stage1"]
    process = start(argv(*words, trainer=trainer))
    read_until(process, "epoch [3/6] batch [2/6]")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert torch.load(out / "resume.pt", weights_only=True)["epoch"] == 2

    halves = train.main(argv(*words, trainer=trainer))
    whole = train.main(argv(*words, trainer=trainer, name="whole"))
    assert halves["metrics"] == whole["metrics"]
    files = sorted(str(p.relative_to(out)) for p in out.glob("*/model*"))
    assert files == sorted(str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").glob("*/model*"))
    for file in files:
        assert torch.equal(context(out, "", file), context(tmp_path / "whole", "", file)), file
    assert not (out / "resume.pt").exists()


def test_a_folder_in_use_sigterm_and_a_full_disk(argv, tmp_path):
    """One run in another process: its folder is taken; it stops when told; its state outlives a disk without space."""
    line = argv("OPTIM.MAX_EPOCH", "300")
    process = start(line)
    read_until(process, "epoch [2/300]")
    with pytest.raises(UserError, match=rf'"{tmp_path}/out" is in use by a running process \(pid {process.pid}\)'):
        train.main(line)
    process.terminate()
    said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert said[1] == ""
    assert f"Interrupted (last good checkpoint: {tmp_path}/out/resume.pt)" in said[0]

    path = tmp_path / "out" / "resume.pt"
    before = path.read_bytes()
    size = 9000  # bytes: room for the config, but neither for resume.pt nor for the log
    error = one_error(start(line, file_size=size))
    assert error == f'Cannot write "{path}": File too large (last good checkpoint: {path})'
    assert path.read_bytes() == before
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "results.json").exists()
