"""Files of weights: read as torch reads them, damage is noticed by the checksums of their records, digests."""

import gc
import weakref

import pytest
import torch

from dassl.utils import (
    MissingFile,
    UserError,
    check_records,
    checkpoint_digest,
    load_checkpoint,
    load_weights,
    restricted_load,
    sha256_file,
)


def flipped(path, at):
    """The file with one bit changed."""
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("at", range(0, 2400, 97))
def test_one_changed_bit_is_noticed_or_changes_nothing(tmp_path, at):
    path, values = tmp_path / "model.pth.tar-1", torch.arange(256.0)
    torch.save({"state_dict": {"ctx": values}, "epoch": 1}, path)
    flipped(path, at % path.stat().st_size)
    try:
        state, epoch, _ = load_weights(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert torch.equal(state["ctx"], values) and epoch == 1


def test_a_changed_weight_is_named_with_its_record(tmp_path):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.full((64,), 2.0)}}, path)
    flipped(path, path.read_bytes().index(b"\0\0\0@" * 64))
    for read in (load_checkpoint, restricted_load, check_records):
        with pytest.raises(UserError, match="model.pth.tar-1.* is damaged.*data/0"):
            read(path)


def test_a_digest_is_of_what_a_file_holds(tmp_path):
    content = {"state_dict": {"ctx": torch.ones(9)}}
    for name, zipped in (("a", True), ("b", True), ("old", False), ("again", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    a, b, old, again = (checkpoint_digest(tmp_path / name) for name in ("a", "b", "old", "again"))
    assert a == b and old == again and a != old and len(a) == len(old) == 32
    torch.save({"state_dict": {"ctx": torch.ones(9).cumsum(0)}}, tmp_path / "b")
    assert checkpoint_digest(tmp_path / "b") != a
    with pytest.raises(MissingFile, match="none"):
        checkpoint_digest(tmp_path / "none")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(UserError, match="b.* is damaged"):
        checkpoint_digest(tmp_path / "b")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_without_checksums_is_read_and_said_to_be_one(tmp_path, capsys, zipped):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"ctx": torch.ones(1)}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(tmp_path / "file")["ctx"] == 1
    assert "no checksums: damage in it can go unnoticed" in capsys.readouterr().out
    assert checkpoint_digest(tmp_path / "file") == sha256_file(tmp_path / "file")[:32]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_reads_is_read_to_the_bit(tmp_path, zipped, protocol):
    base, named = torch.randn(6, 4), torch.nn.Parameter(torch.ones(3))
    named.tag = "x"
    kinds = [torch.float64, torch.half, torch.bfloat16, torch.bool, torch.int8, torch.uint8, torch.int16]
    kinds += [torch.complex64, *([torch.float8_e4m3fn, torch.uint16] if zipped else [])]  # torch reads no such old file
    content = {
        **{str(kind): torch.arange(4).to(kind) for kind in kinds},
        "view": base[2:, 1:3], "transposed": base.T, "same": base, "scalar": torch.tensor(3.5),
        "none": torch.empty(0, 3), "repeated": base[:1].expand(5, 4), "param": torch.nn.Parameter(base), "named": named,
        "grad": torch.ones(2, requires_grad=True), "size": base.shape,
    }  # fmt: skip
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    theirs = torch.load(tmp_path / "file", weights_only=False)
    ours = load_checkpoint(tmp_path / "file")
    assert list(ours) == list(theirs) and ours.pop("size") == theirs.pop("size")
    for name, value in ours.items():
        expected = theirs[name]
        assert value.dtype == expected.dtype and value.stride() == expected.stride(), name
        octets = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (value, expected)]
        assert torch.equal(*octets), name
        assert (type(value), value.requires_grad) == (type(expected), expected.requires_grad), name
    assert ours["view"].untyped_storage().data_ptr() == ours["same"].untyped_storage().data_ptr()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_was_read_is_let_go_with_its_last_name(tmp_path, zipped):
    """Without the garbage collector, which may come after the next checkpoint is read as well."""
    file = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.ones(1000)}}, file, _use_new_zipfile_serialization=zipped)
    gc.collect()
    gc.disable()
    try:
        state = load_checkpoint(file)
        tensor = weakref.ref(state["state_dict"]["ctx"])
        assert tensor() is not None
        del state
        assert tensor() is None
    finally:
        gc.enable()
