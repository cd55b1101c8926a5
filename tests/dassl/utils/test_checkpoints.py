"""Checkpoints of unknown origin: old ones are read, nothing in them runs, all else is refused by name."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import tarfile
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import Inert, MissingFile, UserError, load_checkpoint, load_weights, restricted_load


def write_old_run(folder):
    """What older engines leave: the state of a warm-up scheduler with its live successor, bound to the optimizer."""
    steps = 4
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=0.002, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    last = 0
    optimizer.param_groups[0]["lr"] = 1e-5
    for _ in range(steps):
        weight.grad = torch.ones(4)
        optimizer.step()
        if last == 0:
            last = 1
            optimizer.param_groups[0]["lr"] = 0.002
        else:
            successor.step()
    state = {
        "successor": successor,
        "warmup_epoch": 1,
        "cons_lr": 1e-5,
        "base_lrs": [0.002],
        "last_epoch": last,
        "verbose": False,
        "_step_count": 2,
        "_get_lr_called_within_step": False,
        "_last_lr": [optimizer.param_groups[0]["lr"]],
    }
    checkpoint = {
        "state_dict": {"module.ctx": weight.detach(), "token_prefix": torch.ones(2)},
        "epoch": steps,
        "optimizer": optimizer.state_dict(),
        "scheduler": state,
        "counter": collections.Counter([3, 3]),
        "param": weight,
    }
    for container in ("zip", "legacy"):
        path = folder / container
        torch.save(checkpoint, path, _use_new_zipfile_serialization=container == "zip")


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory):
    """Folder with the same old checkpoint in both containers."""
    folder = tmp_path_factory.mktemp("old")
    write_old_run(folder)
    return folder


def new_schedule():
    node = get_cfg_default().OPTIM
    node.NAME, node.LR, node.LR_SCHEDULER, node.MAX_EPOCH = "sgd", 0.002, "cosine", 10
    node.WARMUP_EPOCH, node.WARMUP_TYPE = 1, "constant"
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(4))], node)
    return optimizer, build_lr_scheduler(optimizer, node)


def rates(optimizer, scheduler, epochs):
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_an_old_checkpoint_is_read_and_resumed(old_runs, container):
    path = old_runs / container
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = load_checkpoint(path)
    assert checkpoint["epoch"] == 4
    del checkpoint["state_dict"]["token_prefix"]
    assert checkpoint["state_dict"]["module.ctx"].shape == (4,)
    assert isinstance(checkpoint["param"], torch.nn.Parameter)
    assert checkpoint["counter"] == collections.Counter({3: 2})
    successor = checkpoint["scheduler"]["successor"]
    assert isinstance(successor, Inert)
    assert successor.origin == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert (successor.last_epoch, successor.T_max) == (3, 10)
    assert isinstance(successor.optimizer, Inert)
    assert isinstance(successor.optimizer.state, collections.defaultdict)

    whole = rates(*new_schedule(), 10)
    optimizer, scheduler = new_schedule()
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    assert rates(optimizer, scheduler, 6) == pytest.approx(whole[4:], rel=1e-12)


def test_old_and_new_files_give_the_same_rates_to_the_bit(tmp_path, old_runs):
    optimizer, scheduler = new_schedule()
    rates(optimizer, scheduler, 4)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "new")
    seen = []
    for path in (tmp_path / "new", old_runs / "zip"):
        checkpoint = load_checkpoint(path)
        optimizer, scheduler = new_schedule()
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        seen.append(rates(optimizer, scheduler, 6))
    assert seen[0] == seen[1]


class Payload:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "template", "named"),
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "open('{}', 'w')", "__builtin__.eval"),
        (open, "{}", "io.open"),
        (torch.load, "{}", "torch.serialization.load"),
    ],
)
def test_hostile_files_run_nothing(tmp_path, zipped, function, template, named):
    flag, path = tmp_path / "flag", tmp_path / "model.pth.tar-1"
    payload = Payload(function, template.format(flag))
    state = {"state_dict": {"ctx": torch.zeros(1)}, "epoch": 1, "scheduler": payload}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for read in (load_checkpoint, restricted_load):
        with pytest.raises(UserError, match=named) as caught:
            read(path)
        assert str(path) in str(caught.value)
    assert not flag.exists()


def archive_of(pickled):
    """A checkpoint archive around hand-made pickle bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def set_attribute(module, name):
    """Pickle that sets the attribute `pwned` on a global to 1."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"N}X\x05\x00\x00\x00pwnedK\x01s\x86b."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("__builtin__", "dict"),
        ("torch.optim.sgd", "SGD"),
    ],
)
def test_a_file_cannot_change_what_it_names(tmp_path, module, name):
    path = tmp_path / "attack"
    path.write_bytes(archive_of(set_attribute(module, name)))
    with pytest.raises(UserError, match="attack"):
        restricted_load(path)
    rebuild = torch._utils._rebuild_tensor_v2
    for target in (collections.Counter, collections.OrderedDict, torch.Size, rebuild, Inert, torch.optim.SGD):
        assert not hasattr(target, "pwned")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(tmp_path, kept, zipped):
    path = tmp_path / "model.pth.tar-3"
    torch.save({"state_dict": {"ctx": torch.randn(1000)}}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(UserError, match="model.pth.tar-3.*damaged or no checkpoint"):
        load_checkpoint(path)


def test_foreign_files(tmp_path):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (5000,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    other = packed.getvalue()
    directory = other.index(b"PK\x01\x02")
    broken = other[:directory] + b"PK\x01\x03" + other[directory + 4 :]
    files = {"noise": noise, "text": b"epoch 3\n" * 9, "other.zip": other, "broken.zip": broken}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor")
    with pytest.raises(UserError, match="holds a Tensor"):
        load_checkpoint(tmp_path / "tensor")
    torch.save({"state_dict": [1]}, tmp_path / "list")
    with pytest.raises(UserError, match="no dictionary"):
        load_checkpoint(tmp_path / "list")
    with pytest.raises(MissingFile, match="none"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match="File path is None"):
        load_checkpoint(None)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("model.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\r\noid 0", "a Git LFS pointer"),
        ("model.pth", b"\n <!DOCTYPE html><html><head><title>Sign in", "a web page"),
        ("model.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page"),
        ("model.pth", b'{"message": "Not Found"}', "a JSON text"),
        ("model.pth", b"\x1f\x8b" + bytes(40), "compressed"),
        ("model.pth", b"\x89HDF\r\n" + bytes(40), "of another format"),
        ("model.pth", b"", "it is empty"),
        ("model.pth", b"PK\x03\x04" + bytes(40), "its end is missing"),
        ("model.safetensors", b"", "it is empty"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_said_to_be_what_it_is(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    for read in (load_checkpoint, load_weights):
        with pytest.raises(UserError, match=f"{name}.* {kind}"):
            read(tmp_path / name)


def test_files_of_torch_and_of_safetensors_under_each_others_names(tmp_path):
    for zipped in (True, False):
        torch.save({"ctx": torch.zeros(1)}, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="a torch file under the name of safetensors"):
            load_checkpoint(tmp_path / "a.safetensors")
    save_file({"ctx": torch.ones(1)}, tmp_path / "b.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "b.safetensors")["ctx"], torch.ones(1))
    (tmp_path / "b.safetensors").rename(tmp_path / "b.pth")
    with pytest.raises(UserError, match="a safetensors file under another name"):
        load_checkpoint(tmp_path / "b.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="folder.pth.* is a folder, expected a file"):
        load_checkpoint(tmp_path / "folder.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_scripts_save_beside_the_weights_is_skipped_and_numbers_are_numbers(tmp_path, zipped):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x"), when=datetime.datetime.now()),
        "config": types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float16),
        "tree": CfgNode({"A": {"B": [1, (2,)]}}),
        "curve": np.arange(3.0),
        "queue": collections.deque([1]),
    }
    for kind in (np.int64, np.uint8, np.float32, torch.tensor, lambda value: torch.tensor([float(value)])):
        content = {"state_dict": {"ctx": torch.ones(2)}, "epoch": kind(50), "val_result": kind(71), **beside}
        torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        state, epoch, result = load_weights(tmp_path / "model.pth")
        assert (list(state), epoch, result) == (["ctx"], 50, 71) and type(epoch) is int
        torch.save(content["state_dict"] | beside | {"epoch": kind(50)}, tmp_path / "model.pth")
        state, epoch, _ = load_weights(tmp_path / "model.pth")
        assert (list(state), epoch) == (["ctx"], 50)
    args = load_checkpoint(tmp_path / "model.pth")["args"]
    assert isinstance(args, Inert) and args.origin == "argparse.Namespace" and args.lr == 0.1
    for epoch in ("50", None, np.float64("nan"), torch.zeros(2), True, 0.5):
        torch.save({"state_dict": {"ctx": torch.ones(2)}, "epoch": epoch}, tmp_path / "model.pth")
        assert load_weights(tmp_path / "model.pth").epoch is None


def test_weights_are_found_below_usual_names_and_wrappers(tmp_path):
    one = {"a.b": torch.ones(1)}
    for content in (
        one,
        {"state_dict": one},
        {"model": {"state_dict": one}},
        {"model_state_dict": {"_orig_mod.module.module.a.b": one["a.b"]}, "optimizer": {"state": {}}},
        {"net": {"module.a._orig_mod.b": one["a.b"]}},
    ):
        torch.save(content, tmp_path / "model.pth")
        assert list(load_weights(tmp_path / "model.pth").state_dict) == ["a.b"]
    for content, match in (
        ({"model": {}, "epoch": 1}, "holds no weights, but"),
        ({"epoch": 1, "loss": 0.5}, "holds no weights, but .'epoch', 'loss'"),
        ({"state_dict": {"module.a": one["a.b"], "a": one["a.b"]}}, "model.pth.*: a is there twice"),
        ({1: one["a.b"]}, "keys that are no names"),
    ):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(UserError, match=match):
            load_weights(tmp_path / "model.pth")


def test_an_archive_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(UserError, match="bomb.*unpack to 50000000"):
        load_checkpoint(path)


def test_a_module_within_itself_has_no_end(tmp_path):
    program = b"\x80\x02c__torch__\nM\n)\x81q\x00}U\x01ah\x00sb."
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        for name, data in (("data.pkl", program), ("constants.pkl", b"\x80\x02)."), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    with pytest.raises(
        UserError, match="clip.pt.* is refused: it has more than 100000 modules, or modules without end"
    ):
        restricted_load(tmp_path / "clip.pt", scripts=True)


def test_programs_and_tar_archives_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, the files are not
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match="program.pt.*TorchScript"):
        load_checkpoint(tmp_path / "program.pt")
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(UserError, match="old.tar.*tar archive"):
        load_checkpoint(tmp_path / "old.tar")
