"""What the system has no more of is one line that says what helps; a signal to all processes lets the step end."""

import errno
import os
import resource
import signal
import socket
import struct
from multiprocessing.connection import Listener

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import train
from dassl.data.data_manager import Loader, own_group
from dassl.utils import UserError, errors_in_one_line
from dassl.utils.errors import limit_reached


class Slow(torch.utils.data.Dataset):
    """Item i is i; every worker's first item is preceded by SIGTERM to itself, as a batch system sends it."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index < 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_workers_go_on_until_the_main_process_has_ended_its_step():
    loader = DataLoader(Slow(), num_workers=2, worker_init_fn=own_group)
    assert [int(item) for item in loader] == list(range(12))
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # else the test shows nothing
        list(DataLoader(Slow(), num_workers=2))


def test_a_signal_while_workers_start_is_heard_after_that_and_costs_none_of_them():
    """SIGTERM to all processes in the very moment of a fork, where Python passes over exceptions."""

    class Told(Exception):
        pass

    def told(*_):
        raise Told

    armed = [True, True]
    os.register_at_fork(before=lambda: armed and armed.pop() and os.kill(os.getpid(), signal.SIGTERM))
    os.register_at_fork(after_in_child=lambda: armed and os.kill(os.getpid(), signal.SIGTERM))
    loader = Loader(range(12), num_workers=1, worker_init_fn=own_group, persistent_workers=True)
    before = signal.signal(signal.SIGTERM, told)
    try:
        with pytest.raises(Told):
            iter(loader)
        assert [int(item) for item in loader] == list(range(12))
    finally:
        signal.signal(signal.SIGTERM, before)
        armed.clear()


@pytest.fixture
def few_files():
    """This process may open no more than a few files beyond those that it has."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(1000) if number not in opened]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[8], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_files_for_the_workers_of_a_loader(argv, few_files):
    words = "DATALOADER.NUM_WORKERS", "4", "FEATURES.VIEWS", "0", "FEATURES.TEST", "False", "INPUT.VIEW_SEEDS", "False"
    with pytest.raises(UserError, match="Too many files are open: raise the limit .*last good checkpoint"):
        train.main(argv(*words))


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda: torch.empty(1 << 48), "Memory is gone"),
        (lambda: np.ones(1 << 48), "Memory is gone"),
        (lambda: bytearray(1 << 60), "Memory is gone"),
        (lambda: os.listdir(1 / 0), ""),
        (lambda: torch.zeros(2) @ torch.zeros(3), ""),
    ],
)
def test_the_systems_refusals_are_known(fails, said):
    with pytest.raises((RuntimeError, MemoryError, ArithmeticError)) as raised:
        fails()
    assert limit_reached(raised.value).startswith(said) and bool(limit_reached(raised.value)) == bool(said)


def test_no_room_for_what_processes_share_names_the_place():
    semaphore, file = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.ENOSPC, "No space left", "/a/b")
    assert "/dev/shm" in limit_reached(semaphore) and limit_reached(file) == ""
    bus = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."
    assert "/dev/shm" in limit_reached(RuntimeError(bus))


def test_a_command_without_memory_ends_with_the_line(capsys):
    with pytest.raises(SystemExit) as raised, errors_in_one_line(3):
        torch.empty(1 << 48)
    assert raised.value.code == 3 and capsys.readouterr().err.startswith("error: Memory is gone")
    with pytest.raises(RuntimeError, match="shape"), errors_in_one_line():
        raise RuntimeError("shape")


def test_a_worker_that_is_lost_while_it_hands_over_a_batch_is_said():
    listener = Listener(("127.0.0.1", 0))
    worker = socket.create_connection(listener.address)
    with listener, listener.accept() as ours:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of one killed
        worker.close()
        with pytest.raises(ConnectionResetError) as lost:
            ours.recv()
    assert limit_reached(lost.value).startswith("A worker that loads images is gone")
    assert limit_reached(ConnectionResetError(104, "Connection reset by peer")) == ""  # of anything else
