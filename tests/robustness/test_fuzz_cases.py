"""Hostile and broken input: what long runs of the fuzzer found after the short ones had nothing to say."""

import contextlib
import functools
import io
import json
import os
import pickle
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

from condu.import_released import stream_of
from condu.state import Stream
from dassl.clip.openai import build_module
from dassl.config import get_cfg_default, merge_pairs
from dassl.utils import (
    UserError,
    load_checkpoint,
    load_plain_pickle,
    load_tensors,
    load_weights,
    read_image,
    restricted_load,
    save_tensors,
)
from datasets import custom
from datasets.matlab import mat_variable
from datasets.mtil import pet_lists
from mergetune import import_checkpoint, stage1
from mergetune.checkpoint_formats import recognise
from tests.fixtures.streams import BACKBONE, small
from tests.fuzz.mutate import packed_of
from tests.fuzz.oracle import address_space
from tests.fuzz.weight_targets import CLASSES, clip_state, good_session, small_clip
from tests.robustness.test_fuzz import written

load_clip = functools.partial(load_weights, scripts=True)

def placed(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# checkpoints


def test_a_second_program_of_the_same_name_is_not_hidden_from_the_scan(tmp_path):
    buffer = io.BytesIO()
    torch.save({"epoch": 1}, buffer)
    with zipfile.ZipFile(buffer) as packed:
        entries = [(entry.filename, packed.read(entry)) for entry in packed.infolist()]
    hostile = [(name, b"\x80\x02Nr\xff\xff\xff\x0f.") for name, _ in entries if name.endswith("data.pkl")]
    for both in (entries + hostile, hostile + entries):
        path = written(tmp_path, "file", packed_of(both))
        for read in (load_checkpoint, restricted_load, load_clip):
            with pytest.raises(UserError, match="file.*more than one entry 'archive/data.pkl'"):
                read(path)


def test_a_terabyte_of_zeros_is_refused_at_once(tmp_path):
    path = written(tmp_path, "file", b"")
    os.truncate(path, 1 << 40)
    for read in (load_checkpoint, restricted_load, load_clip):
        with pytest.raises(UserError, match="file.* is damaged or no checkpoint"):
            read(path)
    with pytest.raises(UserError, match="file"):
        load_tensors(path)


def test_many_marks_on_a_high_stack_take_no_time(tmp_path):
    # one look through the whole stack for each mark would be 10 ** 10 comparisons
    path = written(tmp_path, "file", b"\x80\x02" + b"N" * 100_000 + b"(t" * 100_000 + b".")
    with pytest.raises(UserError, match="file.* is damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_frame_longer_than_its_pickle(tmp_path):
    path = written(tmp_path, "file", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.")
    with one_gigabyte_more():
        with pytest.raises(UserError, match="file.* is damaged or no checkpoint"):
            load_checkpoint(path)
        assert load_plain_pickle(path) is None
    assert load_plain_pickle(written(tmp_path, "whole", pickle.dumps([b"x" * 70_000, "y" * 70_000] * 9, 4)))


def test_keys_that_are_no_names(tmp_path):
    torch.save({"ctx": torch.ones(2, 8), 1: torch.ones(1)}, tmp_path / "model.pth.tar-1")
    with pytest.raises(UserError, match="model.pth.tar-1.* has keys that are no names"):
        import_checkpoint.read(tmp_path / "model.pth.tar-1", "prompt_learner")
    with pytest.raises(UserError, match="no names"):
        recognise({2: torch.ones(1)})


@pytest.mark.parametrize("suffix", [torch.tensor(1.0), 0.5, torch.ones(2, 7, 8).to_sparse(), torch.ones(2, 8), None])
def test_the_embeddings_of_a_foreign_checkpoint(tmp_path, suffix):
    suffix = torch.ones(2, 7, 8, device="meta") if suffix is None else suffix
    with pytest.raises(UserError, match="file: token_suffix is no plain tensor with 3 axes, of 6 tokens"):
        stage1.check_names(tmp_path / "file", "token_suffix", suffix, torch.ones(2, 6, 8))


@pytest.mark.parametrize("tokens", ["words", torch.ones(2), torch.ones(2, 3), torch.ones(2, 9, device="meta")])
def test_the_texts_of_a_foreign_checkpoint(tmp_path, tokens):
    with pytest.raises(UserError, match="file: tokenized_prompts is no plain tensor with 2 axes, of 9 tokens"):
        stage1.check_names(tmp_path / "file", "tokenized_prompts", tokens, torch.ones(2, 9))


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("visual.conv1.weight", torch.ones(64, 8), r"size mismatch for visual.conv1.weight.*\[64, 8\]"),
        ("positional_embedding", torch.ones(8), r"size mismatch for positional_embedding.*\[8\]"),
        ("ln_final.weight", torch.ones(8), "num_heads=0"),
    ],
)
def test_shapes_that_no_clip_has(key, value, match):
    with pytest.raises(UserError, match=f"(?s)a.pt.* holds no CLIP.*{match}"):
        build_module(clip_state() | {key: value}, "a.pt")


# streams and sessions


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fusion", []), ("backbone", None), ("backbone", {"name": "tiny"}), ("scale", 3), ("tasks", {}), ("tasks", [1]),
        ("tasks", [{"name": "a"}]), ("space", "x"),
    ],
)  # fmt: skip
def test_facts_of_a_stream_of_another_kind(tmp_path, key, value):
    small(2).save(tmp_path)
    tensors, facts, _ = load_tensors(tmp_path / "session_1.safetensors")
    save_tensors(tmp_path / "session_1.safetensors", tensors, facts | {key: value})
    with pytest.raises(UserError, match=r"session_1.safetensors"):
        Stream.load(tmp_path, backbone=BACKBONE)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "unified.pth",
            lambda c: c | {"visual.proj": c["visual.proj"].to_sparse()},
            "unified.pth.*visual.proj is no plain",
        ),
        ("Task0.pth", lambda c: c | {"rescalers": torch.ones(1, device="meta")}, "Task0.pth.* has the rescaler"),
        ("Task0.pth", lambda c: c | {"rescalers": torch.ones(1) * 1j}, "Task0.pth.* has the rescaler"),
        ("Task0.pth", lambda c: {**c, "masks": {k: v.to("meta") for k, v in c["masks"].items()}}, "Task0.pth"),
        ("prototypes.pth", lambda c: {k: [row * torch.nan for row in v] for k, v in c.items()}, "not finite"),
        ("prototypes.pth", lambda c: {k: [row.to("meta") for row in v] for k, v in c.items()}, "no plain tensors"),
    ],
)
def test_sessions_of_the_released_code(tmp_path, name, change, match):
    placed(tmp_path, good_session())
    path = tmp_path / "session_1" / name
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError, match=match) as caught:
        stream_of(path.parent, list(CLASSES), CLASSES, small_clip())
    assert str(path.parent) in str(caught.value)


@contextlib.contextmanager
def one_gigabyte_more():
    """The process may take so much address space, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space("VmSize:") + (1 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_tensors_that_cannot_be_mapped_are_refused(tmp_path):
    path = written(tmp_path, "a", b"")
    os.truncate(path, 1 << 40)
    with one_gigabyte_more(), pytest.raises(UserError, match="a.* is damaged .*: Cannot allocate memory"):
        load_tensors(path)


# images, lists, tables


@pytest.mark.parametrize("kind", [b"VP8 ", b"VP8L", b"VP8X"])
def test_a_canvas_that_a_few_bytes_ask_for(tmp_path, kind):
    wide = 16_000
    size = {
        b"VP8 ": b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", wide, wide),
        b"VP8L": b"\x2f" + struct.pack("<I", (wide - 1) | (wide - 1) << 14) + bytes(8),
        b"VP8X": bytes(4) + 2 * struct.pack("<I", wide - 1)[:3],
    }[kind]
    body = b"WEBP" + kind + struct.pack("<I", len(size)) + size
    path = written(tmp_path, "a.jpg", b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(UserError, match=f"a.jpg.*{wide * wide} pixels, a decompression bomb"):
        read_image(path)


def test_a_chunk_that_claims_four_gigabytes(tmp_path):
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 9, 7, 1, 0, 0, 0, 0)
    head += struct.pack(">I", zlib.crc32(head[12:]))
    path = written(tmp_path, "a.png", head + b"\xff\xff\xff\xffIDATx")
    with one_gigabyte_more(), pytest.raises(UserError, match="a.png.* cannot be read"):
        read_image(path)


@pytest.mark.parametrize("number", ["9" * 5001, "0", "-1", "x"])
def test_the_class_of_a_pet(tmp_path, number):
    for part in ("trainval", "test"):
        placed(tmp_path, {f"annotations/{part}.txt": f"Pug_1 {number} 1 1\n".encode()})
    with pytest.raises(UserError, match="trainval.txt: line .* expected image, class"):
        pet_lists(str(tmp_path), str(tmp_path))


def manifest(folder, rows, names):
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    written(folder, "table.csv", "path,label,split\n" + rows)
    written(folder, "names.json", json.dumps(names))
    cfg = get_cfg_default()
    cfg.DATASET.NUM_SHOTS = 1
    own = cfg.DATASET.CUSTOM
    own.PATH, own.IMAGES, own.NAMES = str(folder / "table.csv"), str(folder), str(folder / "names.json")
    return custom.Manifest(cfg)


def test_a_class_name_that_is_half_a_character(tmp_path):
    with pytest.raises(UserError, match=r"table.csv: train_x: label 0, .* no Unicode text"):
        manifest(tmp_path, "a.jpg,0,train\nb.jpg,0,test\n", {"0": "\ud800"})


def test_a_class_without_training_images_names_the_table(tmp_path):
    with pytest.raises(UserError, match=r"table.csv.*label 1 has no training images"):
        manifest(tmp_path, "a.jpg,0,train\nb.jpg,1,test\n", {"0": "cat", "1": "dog"})


def test_a_long_key_that_cannot_be_printed():
    with pytest.raises(UserError, match="KEY VALUE pairs") as caught:
        merge_pairs(get_cfg_default(), ["\x1b[31m" * 1000, "1"])
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1500


def test_a_matlab_file_that_crashes_its_reader(tmp_path):
    from scipy.io import savemat

    kind = [("fname", "O"), ("class", "O")]
    savemat(tmp_path / "a.mat", {"annotations": np.array([[("a.jpg", 1), ("b.jpg", 1)]], dtype=kind)})
    path = str(tmp_path / "a.mat")
    fields = ("fname", "class")
    assert mat_variable(path, "annotations", fields)[0] == {"fname": "a.jpg", "class": 1}
    data = (tmp_path / "a.mat").read_bytes()
    written(tmp_path, "a.mat", data[:265] + bytes(4) + data[265:])
    with pytest.raises(UserError, match="a.mat is damaged"):
        mat_variable(path, "annotations", fields)
