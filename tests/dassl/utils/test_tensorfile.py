"""Safetensors files with facts and a checksum, and folders that are whole or absent."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dassl.utils import (
    MissingFile,
    UserError,
    WriteFailed,
    atomic_folder,
    load_checkpoint,
    load_tensors,
    read_facts,
    read_json,
    save_tensors,
    tensor_checksum,
    tensor_digest,
)
from tests.condu.test_sessions import in_a_child


def content():
    torch.manual_seed(0)
    return {"w": torch.randn(3, 5), "bits": torch.arange(9, dtype=torch.uint8), "s": torch.tensor(2.5).bfloat16()}


def same(a, b):
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def test_round_trip_and_any_reader_of_the_format(tmp_path):
    file, tensors = tmp_path / "new" / "a.safetensors", content()
    crc = save_tensors(file, tensors, {"lr": 1e-5, "names": ["a", "ä"]})
    back, facts, again = load_tensors(file)
    assert same(back, tensors)
    assert facts == {"lr": 1e-5, "names": ["a", "ä"]}
    assert crc == again
    assert read_facts(file) == facts
    assert same(load_file(file), tensors)
    assert os.listdir(file.parent) == ["a.safetensors"]


def test_without_facts_the_checksum_is_that_of_the_tensors(tmp_path):
    assert save_tensors(tmp_path / "a", content()) == tensor_checksum(content())
    assert load_tensors(tmp_path / "a")[1] == {}


def test_views_transposes_and_parameters_are_written_as_their_values(tmp_path):
    whole = torch.randn(4, 6)
    tensors = {"t": whole.T, "row": whole[1], "tail": whole.view(-1)[5:], "p": torch.nn.Parameter(whole)}
    save_tensors(tmp_path / "a", tensors)
    assert same(load_tensors(tmp_path / "a")[0], {key: value.detach() for key, value in tensors.items()})
    assert tensor_digest({"t": whole.T}) == tensor_digest({"t": whole.T.contiguous()})


def test_a_loaded_tensor_may_change_and_its_file_may_go(tmp_path):
    save_tensors(tmp_path / "a", {"w": torch.ones(4)})
    first, second = (load_tensors(tmp_path / "a")[0]["w"] for _ in range(2))
    first.mul_(2)
    os.unlink(tmp_path / "a")
    assert first.tolist() == [2] * 4
    assert second.tolist() == [1] * 4


@pytest.mark.parametrize("change", ["w", "dtype", "shape", "name"])
def test_digests_tell_names_types_shapes_and_values_apart(change):
    base = {"a": torch.zeros(2, 3), "b": torch.ones(6)}
    other = {
        "w": {**base, "b": torch.tensor([1.0, 1, 1, 1, 1, 1 + 1e-7])},
        "dtype": {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        "shape": {**base, "a": torch.zeros(3, 2)},
        "name": {"a": base["a"], "c": base["b"]},
    }[change]
    assert tensor_digest(base) != tensor_digest(other)
    assert tensor_checksum(base) != tensor_checksum(other)
    assert tensor_digest(base) == tensor_digest(dict(reversed(base.items())))


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, {"w": torch.randn(4), "bits": torch.arange(3, dtype=torch.uint8)}, {"lr": 1e-5})
    good = file.read_bytes()
    before = load_tensors(file)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bad)
        try:
            after = load_tensors(file)
        except UserError as error:
            assert str(file) in str(error)
        else:  # blanks that pad the header say nothing
            assert same(after[0], before[0])
            assert after[1:] == before[1:]
    for length in range(len(good)):
        file.write_bytes(good[:length])
        with pytest.raises(UserError, match="a.safetensors"):
            load_tensors(file)


def test_a_folder_whose_name_is_no_utf8_is_read_too(tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"), "t.safetensors")
    crc = save_tensors(path, {"a": torch.arange(5)}, {"task": "b"})
    tensors, facts, found = load_tensors(path)
    os.unlink(path)
    assert tensors["a"].tolist() == list(range(5)) and facts == {"task": "b"} and found == crc


def test_absent_and_foreign_files(tmp_path):
    with pytest.raises(MissingFile, match="nothing"):
        load_tensors(tmp_path / "nothing")
    save_file({"w": torch.ones(2)}, tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs.*written by something else.*no facts and checksum"):
        load_tensors(tmp_path / "theirs")


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "below" / "run"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        save_tensors(os.path.join(folder, "a"), content())
        _ = 1 / 0
    assert os.listdir(tmp_path / "below") == []
    with atomic_folder(target) as folder:
        save_tensors(os.path.join(folder, "a"), content())
        assert not target.exists()
    assert os.listdir(tmp_path / "below") == ["run"]
    assert os.listdir(target) == ["a"]
    with pytest.raises(WriteFailed, match="run"), atomic_folder(target):
        pass
    assert same(load_tensors(target / "a")[0], content())


@pytest.mark.parametrize("read", [load_tensors, read_facts, load_checkpoint, read_json])
def test_what_may_not_be_read_is_not_called_damaged(read):
    """In a child that is nobody in particular, for root may read all."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = Path(place, "a.safetensors")
        save_tensors(path, content(), {"lr": 1})
        os.chmod(path, 0)

        def refused():
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                read(path)
            except UserError as error:
                return 0 if "may not be read: Permission denied" in str(error) and "damaged" not in str(error) else 3
            return 2

        assert in_a_child(refused) == 0
