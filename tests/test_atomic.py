"""Interruptions in the middle of writing a checkpoint: they stay what they are, and the old file stays whole."""

import os
import random
import signal

import pytest
import torch

from dassl.utils import atomic_save

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
