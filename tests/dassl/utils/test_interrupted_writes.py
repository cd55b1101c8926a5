"""Interruptions in the middle of writing a checkpoint: they stay what they are, and the old file stays whole."""

import os
import random
import signal
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dassl.utils import RunLock, WriteFailed, atomic_save, atomic_write
from dassl.utils.files import atomic_folder, atomic_path

VALUES = {str(i): torch.full((2000,), float(i)) for i in range(300)}


def test_a_signal_while_saving_is_no_error_of_the_file(tmp_path):
    """torch's writer, closing an archive that was interrupted in mid-record, raises an error of its own."""

    def stop(signum, frame):
        raise SystemExit(128 + signum)

    path, moments, before = tmp_path / "model.pt", random.Random(0), signal.signal(signal.SIGALRM, stop)
    atomic_save(VALUES, path)
    try:
        for _ in range(40):  # about one in twenty falls between the parts of a record
            with pytest.raises(SystemExit) as raised:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0005, 0.02))
                for _ in range(100):  # longer than any of the moments
                    atomic_save(VALUES, path)
            assert raised.value.code == 128 + signal.SIGALRM
            assert torch.equal(torch.load(path, weights_only=True)["299"], VALUES["299"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_what_a_killed_process_has_left_is_taken_over(tmp_path):
    (tmp_path / ".file.0.tmp").write_bytes(b"half of it, and longer than the next")
    (tmp_path / ".folder.0.tmp" / "deep").mkdir(parents=True)
    (tmp_path / ".folder.0.tmp" / "deep" / "old").touch()
    with atomic_write(tmp_path / "file") as file:
        file.write(b"whole")
    with atomic_folder(tmp_path / "folder") as folder:
        open(os.path.join(folder, "new"), "w").close()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["file", "folder", "folder/new"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_two_who_write_one_file_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "file") as first, atomic_path(tmp_path / "file") as second:
        assert first != second
        for name in (first, second):
            with open(name, "w") as file:
                file.write(name)
    assert (tmp_path / "file").read_text() == first  # the last to end
    assert os.listdir(tmp_path) == ["file"]


def test_links_in_the_place_of_temporary_files_and_locks_are_not_followed(tmp_path):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("keep")
    (run / "folder").mkdir(parents=True)
    for name in (".file.0.tmp", ".folder.0.tmp", ".file.2.tmp"):
        (run / name).symlink_to(victim)
    os.link(victim, run / ".file.1.tmp")
    with atomic_write(run / "file", "w") as file:
        file.write("whole")
    with atomic_folder(run / "folder") as folder:
        open(os.path.join(folder, "new"), "w").close()
    assert (run / "file").read_text() == "whole" and os.listdir(run / "folder") == ["new"]
    for place in ("linked", "twice"):
        (tmp_path / place).mkdir()
    (tmp_path / "linked" / ".lock").symlink_to(victim)
    os.link(victim, tmp_path / "twice" / ".lock")
    for place, reason in (("linked", ".lock is a link"), ("twice", ".lock is a second name of another file")):
        with pytest.raises(WriteFailed, match=f"{place}.*: {reason}"), RunLock(tmp_path / place):
            pass
    assert victim.read_text() == "keep"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """A link to a device, or a pipe: an administrator's rename would end /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(WriteFailed, match=f'{name}": it is no plain file'), atomic_write(tmp_path / name):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_lock_and_a_file_may_be_written_by_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        with RunLock(tmp_path), atomic_write(tmp_path / "file") as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (".lock", "file")} == {0o666 & ~umask}


def test_many_who_write_one_file_leave_one_whole_file(tmp_path):
    """Beside what killed writers left, which all of them may want to clear away."""
    for number in range(3):
        (tmp_path / f".file.{number}.tmp").write_bytes(b"half")

    def write(number):
        for _ in range(50):
            with atomic_write(tmp_path / "file") as file:
                file.write(bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert os.listdir(tmp_path) == ["file"] and len(set((tmp_path / "file").read_bytes())) == 1
