"""Hostile and broken input: a short run of the fuzzer over every reader, its oracle, and what it has found so far."""

import contextlib
import functools
import json
import mmap
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dassl.clip.tiny.load import random_tiny
from dassl.config import get_cfg_default, merge_pairs, read_yaml
from dassl.report.records import load_results
from dassl.utils import UserError, load_checkpoint, load_plain_pickle, load_weights, read_image, read_json
from datasets.readers import split_json
from mergetune.import_checkpoint import main as import_checkpoint
from mergetune.models.deep_prompts import ImagePrompts
from tests.fixtures.interpreter import Python
from tests.fuzz import guided, hostile
from tests.fuzz.campaign import campaign
from tests.fuzz.oracle import Target
from tests.fuzz.scripts import Writer

INPUTS = 400
load_clip = functools.partial(load_weights, scripts=True)
WITH_LIBFUZZER = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is built for Linux on x86-64 only")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    words = ["--inputs", str(INPUTS), "--out", str(folder / "report.json"), "--saved", str(folder / "saved")]
    done = Python(["tests/fuzz/run.py", *words])
    said = "".join(done.communicate())
    return json.loads((folder / "report.json").read_text()) | {"said": said, "code": done.returncode}


def test_inputs_are_read_or_refused_in_one_line(report):
    assert report["code"] == 0, report["said"]
    assert sum(target["inputs"] for target in report["targets"]) >= INPUTS
    assert all(target["read"] + target["refused"] == target["inputs"] for target in report["targets"])
    assert sum(target["read"] for target in report["targets"]) > INPUTS / 20  # not all is noise


def test_the_lines_of_the_readers_are_counted(report):
    covered = report["coverage"]
    assert covered["datasets/readers.py"]["run"] > covered["datasets/readers.py"]["lines"] / 2
    assert "never" in report["said"] and "Dassl.ProGrad.pytorch/dassl/utils/checkpoints.py" in report["said"]


# the oracle


def keyed(folder):
    return {}[(folder / "file").read_bytes()]


def writes(folder):
    (folder / "file.tmp").write_bytes(b"half")


def runs(folder):
    os.system("true")


def spins(folder):
    while True:
        pass


def sleeps(folder):
    time.sleep(1000)


def grows(folder):
    return mmap.mmap(-1, 1 << 29).close()


def silent(folder):
    raise UserError("something is wrong")


def dies(folder):
    os.abort()


def refuses(folder):
    raise UserError(f"{folder / 'file'} is not what was expected")


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (keyed, "exception KeyError"), (writes, "wrote"), (runs, "ran code"), (spins, "hang"), (sleeps, "hang"),
        (grows, "memory"), (silent, "unnamed"), (dies, "crash SIGABRT"), (refuses, None),
    ],
)  # fmt: skip
def test_the_oracle_notices(tmp_path, monkeypatch, reader, kind):
    for name in ("LIMIT_S", "BLOCKED_S"):
        monkeypatch.setattr(f"tests.fuzz.oracle.{name}", 0.5)
    monkeypatch.setattr("tests.fuzz.campaign.LIMIT_S", 0.1)
    monkeypatch.setattr("tests.fuzz.campaign.WARM", 0)
    target = Target("planted", lambda rng: {"file": rng.randbytes(20)}, reader, ())
    found = campaign(target, 2, 0, tmp_path)
    assert found.inputs == 2
    assert {failure.kind for failure in found.failures} == ({kind} if kind else set())
    assert found.refused == (0 if kind else 2)
    for failure in found.failures:
        assert len(list(Path(failure.saved, "input").iterdir())) == 1
        assert json.loads(Path(failure.saved, "verdict.json").read_text())["kind"] == kind


def test_libfuzzer_is_asked_for_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="^2$"):
        guided.main([])
    assert capsys.readouterr().err.splitlines()[-1].endswith("(built for Linux on x86-64)")


@WITH_LIBFUZZER
def test_libfuzzer_reads_the_same_targets(tmp_path):
    words = ["--only", "split", "tensors", "--inputs", "300", "--saved", tmp_path]
    process = Python(["tests/fuzz/guided.py", *words])
    said = process.communicate()
    assert process.returncode == 0, said
    rows = {line.split()[0]: line.split()[1:5] for line in said[0].splitlines() if line}
    for name in ("split", "tensors"):
        inputs, read, refused, failed = map(int, rows[name])
        assert inputs >= 300 and read + refused == inputs and failed == 0
    assert not list(tmp_path.iterdir())


# what it found


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 19)), "more than 10000"),  # noqa: E501
        ("OPTIM: &o\n  LR: *o\n", "own.yaml holds more than 10000 values"),
        ("a: " + "[" * 3000, "not valid yaml: .*nest(ed more than|ing depth)"),
        ("SEED: !!int x", "no tag:yaml.org,2002:int: invalid literal"),
        ("SEED: !!timestamp x", "no tag:yaml.org,2002:timestamp"),
        ("SEED: !!bool x", "no tag:yaml.org,2002:bool"),
        ("LR: 2001-99-99", "month must be in 1..12"),
        ("SEED: " + "9" * 5000, "own.yaml is not valid yaml.*Exceeds the limit"),
        ('_BASE_: "\\0.yaml"', r"\\x00.yaml \(_BASE_ of .*own.yaml\) does not exist"),
        (f"_BASE_: {'a' * 300}.yaml", "a.yaml .*own.yaml.* does not exist"),
    ],
)  # fmt: skip
def test_yaml(tmp_path, text, match):
    with pytest.raises(UserError, match=match) as caught:
        read_yaml(written(tmp_path, "own.yaml", text))
    assert str(tmp_path / "own.yaml") in str(caught.value)


@pytest.mark.parametrize("value", ["{[]: 1}", "[" * 5000, "-" * 3000 + "1", "9" * 5000, "\x1b[31m"])
def test_values_of_the_command_line(value):
    with pytest.raises(UserError, match="KEY VALUE pairs: OPTIM.LR = ") as caught:
        merge_pairs(get_cfg_default(), ["OPTIM.LR", value])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1600


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 50_000, None])
def test_json_that_is_too_deep_or_too_large(tmp_path, content):
    path = written(tmp_path, "split.json", content or "")
    if content is None:
        os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match="split.json"):
        read_json(path)


@pytest.mark.parametrize("read", [load_clip, load_checkpoint, read_json, load_plain_pickle, read_image])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a\0b/c.jpg", "\ud800/c.jpg", f"{'a' * 300}/c.jpg"])
def test_images_in_folders_that_cannot_be(tmp_path, name):
    items = [[name, 0, "cat"]]
    path = written(tmp_path, "split.json", json.dumps({"train": items, "val": [], "test": []}))
    with pytest.raises(UserError, match=f"1 of the 1 images that {path} names are not below"):
        split_json(str(path), str(tmp_path))


@pytest.mark.parametrize("program", hostile.pickles(), ids=range(len(hostile.pickles())))
def test_pickles_that_run_or_grow(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    for content in (program, hostile.archive_of(program)):
        path = written(tmp_path, "file", content)
        for read in (load_checkpoint, load_clip):
            with pytest.raises(UserError, match=str(path)):
                read(path)
    with contextlib.suppress(UserError):  # some are plain data, only deep
        load_plain_pickle(path)
    assert os.listdir(tmp_path) == ["file"]


def test_tensors_of_stride_0_are_no_larger_than_their_file(tmp_path):
    torch.save({"state_dict": {"ctx": torch.ones(1).expand(1 << 20, 1 << 20)}}, tmp_path / "bomb")
    for read in (load_checkpoint, load_clip):
        with pytest.raises(UserError, match="bomb.* is refused: .* bytes hold tensors of 4398046511104"):
            read(tmp_path / "bomb")


def test_the_older_format_cannot_claim_more_than_it_has(tmp_path):
    path = written(tmp_path, "old", hostile.legacy(1 << 33))
    with pytest.raises(UserError, match="old.* it has .* bytes and says it holds the storage"):
        load_checkpoint(path)


def test_a_program_in_an_archive_of_weights_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Writer()), "clip.pt")
    torch.jit.load("clip.pt")
    assert os.path.exists("canary")
    os.unlink("canary")
    with pytest.raises(UserError, match="clip.pt.* holds no weights"):
        load_weights(tmp_path / "clip.pt", scripts=True)
    assert os.listdir(tmp_path) == ["clip.pt"]


@pytest.mark.parametrize("number", ["1000000000", "9" * 4000])
def test_a_key_cannot_ask_for_a_billion_layers(number, tmp_path):
    file, config = tmp_path / "model.pth.tar-1", "configs/trainers/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml"
    key = f"image_encoder.transformer.resblocks.{number}.VPT_shallow"
    state = {"prompt_learner.ctx": torch.zeros(4, 8), "image_encoder.VPT": torch.zeros(2, 8), key: torch.zeros(2, 8)}
    torch.save({"state_dict": state, "epoch": 1}, file)
    words = ["--trainer", "PromptSRC", "--config-file", config, "MODEL.BACKBONE.NAME", "tiny"]
    facts = import_checkpoint([str(file), "--out", str(tmp_path / "run"), *words])
    assert facts["config"]["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION"] == 2
    with pytest.raises(UserError, match="blocks"):
        ImagePrompts(random_tiny(), 4, int(number))


def test_images_that_would_fill_the_memory_or_start_a_program(tmp_path):
    with pytest.raises(UserError, match="9000 x 9000 pixels, a decompression bomb"):
        read_image(written(tmp_path, "a.png", hostile.flat_png(9000)))
    with pytest.raises(UserError, match="a.eps.* cannot be read"):
        read_image(written(tmp_path, "a.eps", hostile.EPS))


@pytest.mark.parametrize(
    "fields",
    [{"command": 3}, {"shots": {}}, {"merge": {"method": {}}}, {"preset": 2.0}, {"alpha_chosen_on": []}, {"kind": [1]}],
)
def test_results_with_fields_of_another_type_are_left_out(tmp_path, fields):
    good = {"format": 1, "trainer": "CoOp", "dataset": "a", "protocol": "p", "subset": "base", "seed": 1, "metrics": {}}
    for name, content in (("good", good), ("bad", good | fields)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    os.symlink("results.json", tmp_path / "results.json")  # names itself
    assert [record["file"].parent.name for record in load_results(tmp_path)] == ["good"]
