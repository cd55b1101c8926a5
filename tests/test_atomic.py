"""Interruptions in the middle of writing a checkpoint: they stay what they are, and the old file stays whole."""

import os
import random
import signal

import pytest
import torch

from dassl.utils import atomic_save, atomic_write
from dassl.utils.atomic import atomic_folder, atomic_path

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
