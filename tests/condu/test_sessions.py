"""A stream's folder under kills, full disks, left-overs and damage."""

import json
import os
import resource
import shutil
import signal
import sys

import pytest

from condu.state import Stream, sessions
from dassl.utils import MissingFile, RunLock, UserError, WriteFailed, load_tensors, save_tensors
from tests.fixtures.streams import BACKBONE, SPACE, assert_same, delta, grow, rows, small, task

FILE = "session_1.safetensors"


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
        assert sessions(folder) in ([left.session], [0, 1])  # the earlier one goes last
        seen.add((done, left.session))
        grow(left, 2).save(folder)  # the run comes again
        assert_same(Stream.load(folder), new)
        assert names(folder) == [FILE]
        if done == 0:
            break
    assert seen == {(-9, 0), (-9, 1), (0, 1)}
    assert number > 9


def test_a_kill_in_the_first_session_leaves_no_stream_or_a_whole_one(tmp_path):
    for number in range(1, 200):
        folder = tmp_path / str(number)

        def save(folder=folder, number=number):
            die_before(number, folder)
            small(1).save(folder)

        done = in_a_child(save)
        if sessions(folder):
            assert_same(Stream.load(folder), small(1))
        small(1).save(folder)
        assert names(folder) == ["session_0.safetensors"]
        if done == 0:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("limit", [0, 100, 1500])
def test_a_full_disk_leaves_the_old_state_whole(tmp_path, limit):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond it. The lock's or the state's is too large."""
    old, new = small(1), small(2)
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
    assert names(tmp_path) == ["session_0.safetensors"]
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
        assert names(tmp_path) == [f"session_{count - 1}.safetensors"]
    with pytest.raises(UserError, match="has no session 0; there: 2"):
        Stream.load(tmp_path, 0)


def test_ten_sessions_and_more(tmp_path):
    """Numbers of two digits sort as numbers."""
    for count in range(1, 13):
        grow(Stream.load(tmp_path) if sessions(tmp_path) else small(0), count).save(tmp_path, history=True)
    assert sessions(tmp_path) == list(range(12))
    assert Stream.load(tmp_path).session == 11


def test_the_same_session_again(tmp_path):
    small(2).save(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    Stream.load(tmp_path).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    Stream.load(tmp_path).save(tmp_path, half=True)
    assert sessions(tmp_path) == [1] and len((tmp_path / FILE).read_bytes()) < len(before)


def test_left_overs_are_no_tasks(tmp_path):
    """Stray and half-written files are not read, and the own ones give way."""
    small(2).save(tmp_path)
    (tmp_path / ".session_2.safetensors.0.tmp").write_bytes(b"half")
    for name in ("Task8", "session_07", "session_x", "session_"):
        shutil.copy(tmp_path / FILE, tmp_path / f"{name}.safetensors")
    assert_same(Stream.load(tmp_path), small(2))
    assert sessions(tmp_path) == [1]
    grow(Stream.load(tmp_path), 3).save(tmp_path)
    assert_same(Stream.load(tmp_path), small(3))
    assert {"session_2.safetensors", "Task8.safetensors"} < set(names(tmp_path)) and FILE not in names(tmp_path)
    assert not any(name.endswith(".tmp") for name in names(tmp_path))


def test_a_damaged_file_is_named(tmp_path):
    stream = small(2)
    stream.save(tmp_path)
    path = tmp_path / FILE
    good = path.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 300)):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 1 << place % 7]) + good[place + 1 :]):
            path.write_bytes(bad)
            try:
                assert_same(Stream.load(tmp_path), stream)  # a blank of the header
            except UserError as error:
                assert str(path) in str(error)
    path.unlink()
    with pytest.raises(MissingFile, match="No stream"):
        Stream.load(tmp_path)


def another(folder):
    """The sessions of a stream whose experts are others, kept."""
    stream = Stream(backbone=BACKBONE, space=SPACE)
    for number in range(3):
        stream.add(task(number), delta(7 + number), rows(number))
        stream.save(folder, history=True)


@pytest.mark.parametrize("session", range(3))
def test_a_file_of_another_stream_is_noticed(tmp_path, session):
    for count in range(1, 4):
        small(count).save(tmp_path / "a", history=True)
    another(tmp_path / "b")
    file = f"session_{session}.safetensors"
    shutil.copy(tmp_path / "b" / file, tmp_path / "a" / file)
    with pytest.raises(UserError, match=r"holds the stream .* does not continue"):
        Stream.load(tmp_path / "a", session)


def test_sessions_that_were_exchanged_are_noticed(tmp_path):
    for count in range(1, 3):
        small(count).save(tmp_path, history=True)
    first, second = tmp_path / "session_0.safetensors", tmp_path / FILE
    first.rename(tmp_path / "away")
    second.rename(first)
    (tmp_path / "away").rename(second)
    for session in (None, 0, 1):
        with pytest.raises(UserError, match="is of another session"):
            Stream.load(tmp_path, session)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 3}, "has format 3, and this version reads up to 2"),
        ({"session": 0}, "is of another session, 0"),
        ({"tasks": None}, "damaged or not the state of a stream"),
    ],
)
def test_a_newer_format_and_what_is_no_session_are_refused(tmp_path, change, match):
    small(2).save(tmp_path)
    tensors, facts, _ = load_tensors(tmp_path / FILE)
    save_tensors(tmp_path / FILE, tensors, facts | change)
    with pytest.raises(UserError, match=f"{FILE}.*{match}"):
        Stream.load(tmp_path)


def test_a_stream_of_the_first_format_is_refused_in_one_line_and_left_alone(tmp_path):
    """Its pointer, as version 1 wrote it; the sessions lay in folders beside it."""
    pointer = {"format": 1, "session": 0, "sessions": {"0": {"folder": "session_0", "check": "0f"}}, "leaving": []}
    (tmp_path / "stream.json").write_text(json.dumps(pointer | {"check": "00"}))
    (tmp_path / "session_0").mkdir()
    for use in (Stream.load, sessions, small(1).save):
        with pytest.raises(UserError, match=r"holds a stream of an earlier version \(stream.json\).*train it again"):
            use(tmp_path)
    assert names(tmp_path) == ["session_0", "stream.json"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_state_has_the_mode_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        small(1).save(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "session_0.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_reader_follows_a_writer_that_moves_on(tmp_path):
    """The session that the reader began with goes away under it."""
    small(1).save(tmp_path)
    began = []

    class Slow(Stream):
        @classmethod
        def _read(cls, folder, there, session, asked):
            if not began:
                began.append(there)
                small(2).save(tmp_path)
            return super()._read(folder, there, session, asked)

    assert_same(Slow.load(tmp_path), small(2))
    assert began == [[0]]


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
