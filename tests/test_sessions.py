"""A stream's folder under kills, full disks, left-overs and damage."""

import json
import os
import resource
import shutil
import signal
import sys

import pytest
import torch

from condu.stream import Stream, exists, sessions
from dassl.utils import MissingFile, RunLock, UserError, WriteFailed, load_tensors, save_tensors
from tests.fixtures.streams import assert_same, delta, grow, rows, small, task

FILES = ["stream.json", "session_1/stream.json", "session_1/fusion.safetensors", "session_1/prototypes.safetensors"]


def names(folder):
    return sorted(name for name in os.listdir(folder) if name != ".lock")


def in_a_child(work):
    """Exit code of `work()` in a fork of this process; -9 if it killed itself."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_before(number, folder):
    """Kill this process before its number-th call to the system that names `folder`."""
    left = number

    def hook(event, args):
        nonlocal left
        if event.startswith(("os.", "open", "shutil.")) and any(str(folder) in str(arg) for arg in args):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_a_kill_at_any_point_leaves_a_whole_session(tmp_path):
    old, new, start = small(1), small(2), tmp_path / "start"
    old.save(start)
    seen = set()
    for number in range(1, 200):
        folder = tmp_path / f"killed{number}"
        shutil.copytree(start, folder)

        def save(folder=folder, number=number):
            die_before(number, folder)
            new.save(folder)

        done = in_a_child(save)
        left = Stream.load(folder)
        assert_same(left, old if left.session == 0 else new)
        assert sessions(folder) == [left.session]
        seen.add((done, left.session))
        grow(left, 2).save(folder)  # the run comes again
        assert_same(Stream.load(folder), new)
        assert names(folder) == ["session_1", "stream.json"]
        if done == 0:
            break
    assert seen == {(-9, 0), (-9, 1), (0, 1)}
    assert number > 20


def test_a_kill_in_the_first_session_leaves_no_stream_or_a_whole_one(tmp_path):
    for number in range(1, 200):
        folder = tmp_path / str(number)

        def save(folder=folder, number=number):
            die_before(number, folder)
            small(1).save(folder)

        done = in_a_child(save)
        if exists(folder):
            assert_same(Stream.load(folder), small(1))
        small(1).save(folder)
        assert names(folder) == ["session_0", "stream.json"]
        if done == 0:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize(("limit", "texts"), [(0, 0), (100, 0), (1500, 0), (4000, 1000)])
def test_a_full_disk_leaves_the_old_state_whole(tmp_path, limit, texts):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond it. The lock's, the tensors', and at last the
    manifest's is too large."""
    old, new = small(1), small(2)
    new.tasks[1].prompts += ["a {}."] * texts
    old.save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file() and path.name != ".lock"}

    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            new.save(tmp_path)
        except WriteFailed as error:
            return 0 if str(tmp_path) in str(error) else 3
        return 2

    assert in_a_child(save) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert names(tmp_path) == ["session_0", "stream.json"]
    assert_same(Stream.load(tmp_path), old)


def test_history_keeps_every_session(tmp_path):
    for count in range(1, 4):
        small(count).save(tmp_path, history=True)
    assert sessions(tmp_path) == [0, 1, 2]
    for session in range(3):
        assert_same(Stream.load(tmp_path, session), small(session + 1))
    with pytest.raises(UserError, match="has no session 3; there: 0, 1, 2"):
        Stream.load(tmp_path, 3)


def test_without_history_one_session_is_there(tmp_path):
    for count in range(1, 4):
        small(count).save(tmp_path)
        assert names(tmp_path) == [f"session_{count - 1}", "stream.json"]
    with pytest.raises(UserError, match="has no session 0; there: 2"):
        Stream.load(tmp_path, 0)


def test_ten_sessions_and_more(tmp_path):
    """Numbers of two digits sort as numbers."""
    for count in range(1, 13):
        grow(Stream.load(tmp_path) if exists(tmp_path) else small(0), count).save(tmp_path, history=True)
    assert sessions(tmp_path) == list(range(12))
    assert Stream.load(tmp_path).session == 11


def test_the_same_session_again(tmp_path):
    small(2).save(tmp_path)
    times = {tmp_path / file: (tmp_path / file).stat().st_mtime_ns for file in FILES}
    Stream.load(tmp_path).save(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    Stream.load(tmp_path).save(tmp_path, half=True)
    assert names(tmp_path) == ["session_1_1", "stream.json"]
    Stream.load(tmp_path).save(tmp_path)
    assert names(tmp_path) == ["session_1", "stream.json"]
    assert sessions(tmp_path) == [1]


def test_left_overs_are_no_tasks(tmp_path):
    """A session of another run, stray files, a half-written folder: not read, and the own ones give way."""
    other = small(6, scale="none")
    other.save(tmp_path / "other")
    small(2).save(tmp_path / "s")
    folder = tmp_path / "s"
    shutil.copytree(tmp_path / "other" / "session_5", folder / "session_5")
    shutil.copytree(tmp_path / "other" / "session_5", folder / ".session_2.77.tmp")
    (folder / ".session_2.77.tmp" / "stream.json").unlink()
    save_tensors(folder / "session_1" / "Task7.safetensors", {"unified.visual.proj": torch.ones(5, 7)})
    save_tensors(folder / "Task8.safetensors", {"w": torch.ones(3)})
    assert_same(Stream.load(folder), small(2))
    assert sessions(folder) == [1]
    with pytest.raises(UserError, match="has no session 5; there: 1"):
        Stream.load(folder, 5)
    for count in range(3, 7):
        grow(Stream.load(folder), count).save(folder)
    assert_same(Stream.load(folder), small(6))
    assert names(folder) == ["Task8.safetensors", "session_5", "stream.json"]


def test_a_foreign_folder_of_the_name_is_not_removed(tmp_path):
    (tmp_path / "session_0").mkdir()
    (tmp_path / "session_0" / "unified.pth").write_bytes(b"theirs")
    with pytest.raises(UserError, match="session_0.*in the way"):
        small(1).save(tmp_path)
    assert (tmp_path / "session_0" / "unified.pth").read_bytes() == b"theirs"
    assert not exists(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named(tmp_path, file):
    stream = small(2)
    stream.save(tmp_path)
    path = tmp_path / file
    good = path.read_bytes()
    step = max(1, len(good) // 150)
    for place in range(0, len(good), step):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1 << place % 7]) + good[place + 1 :]):
            path.write_bytes(bad)
            try:
                assert_same(Stream.load(tmp_path), stream)  # a blank of the JSON or of a header
            except UserError as error:
                assert str(path) in str(error)
    path.unlink()
    with pytest.raises(MissingFile, match=file):
        Stream.load(tmp_path)


@pytest.mark.parametrize("file", FILES[1:])
def test_a_file_of_another_session_is_noticed(tmp_path, file):
    small(2).save(tmp_path / "a")
    other = small(1)
    other.tasks[0].recipe["seed"] = 77
    other.prototypes[0] = -other.prototypes[0]
    grow(other, 1)
    other.fusion.unified["scale"] = other.fusion.unified["scale"] * 2
    other = grow(other, 2)
    other.save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / file, tmp_path / "a" / file)
    with pytest.raises(UserError, match=f"{file}.*(another session|is not the session)"):
        Stream.load(tmp_path / "a")


@pytest.mark.parametrize("file", FILES[:2])
def test_a_newer_format_is_refused(tmp_path, file):
    small(2).save(tmp_path)
    facts = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(UserError, match="has format 2, and this version reads up to 1"):
        Stream.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "1", "check": ""}', "torch", '{"session": 1}'])
def test_a_pointer_that_is_none(tmp_path, content):
    (tmp_path / "stream.json").write_text(content)
    with pytest.raises(UserError, match="stream.json"):
        Stream.load(tmp_path)


def test_a_reader_follows_a_writer_that_moves_on(tmp_path):
    """The session that the reader began with goes away under it."""
    small(1).save(tmp_path)
    began = []

    class Slow(Stream):
        @classmethod
        def _read(cls, there, session, asked):
            if not began:
                began.append(there.current)
                small(2).save(tmp_path)
            return super()._read(there, session, asked)

    assert_same(Slow.load(tmp_path), small(2))
    assert began == [0]


def test_one_writer_at_a_time(tmp_path):
    small(1).save(tmp_path)
    with RunLock(tmp_path), pytest.raises(UserError, match="in use"):
        small(2).save(tmp_path)
    assert_same(Stream.load(tmp_path), small(1))


def test_two_runs_that_learned_the_same_session_do_not_overwrite_each_other(tmp_path):
    small(1).save(tmp_path)
    first, second = Stream.load(tmp_path), Stream.load(tmp_path)
    grow(first, 2).save(tmp_path)
    second.add(task(3), delta(3), rows(3))
    with pytest.raises(UserError, match="does not continue"):
        second.save(tmp_path)
    assert_same(Stream.load(tmp_path), small(2))


def test_a_loaded_stream_outlives_its_files(tmp_path):
    small(2).save(tmp_path / "s")
    stream = Stream.load(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    assert_same(stream, small(2))
    assert_same(grow(stream, 3), small(3))


def test_tensors_of_a_session_are_plain_files(tmp_path):
    small(2).save(tmp_path)
    tensors, _, _ = load_tensors(tmp_path / "session_1" / "prototypes.safetensors")
    assert {name: tuple(rows.shape) for name, rows in tensors.items()} == {"0": (2, 6), "1": (3, 6)}
