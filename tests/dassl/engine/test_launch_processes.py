"""Runs in processes of their own: two on one folder, one that is told to stop, one without space on its disk."""

import re
import signal

import pytest
import torch

from dassl.engine import build_trainer
from dassl.engine.launch import run
from dassl.utils import UserError
from tests.fixtures.dassl_style_world import style_config, until_waiting, victim, write_images

THREE = ["OPTIM.MAX_EPOCH", "3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_images(tmp_path_factory.mktemp("images"))
    build_trainer(style_config(root, root, "ShortLosses"))  # leaves the data set's own caches
    return root


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_not_in_the_way(root, tmp_path):
    process = victim(root, tmp_path, "ShortLosses", 0, THREE)
    until_waiting(process)
    cfg = style_config(root, tmp_path, "ShortLosses", OPTIM__MAX_EPOCH=3)
    try:
        with pytest.raises(UserError, match=rf'"{tmp_path}" is in use by a running process \(pid {process.pid}\)'):
            run(cfg)
    finally:
        process.kill()
        process.communicate()
    assert run(cfg)["metrics"]


def test_sigterm_is_a_clean_exit(root, tmp_path):
    process = victim(root, tmp_path, "ShortLosses", 1, THREE)
    until_waiting(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert "Interrupted (last good checkpoint:" in (tmp_path / "log.txt").read_text()
    state = torch.load(tmp_path / "resume.pt")
    assert (state["epoch"], state["within"]["batches"]) == (1, 2)
    assert not (tmp_path / "results.json").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(root, tmp_path):
    """RLIMIT_FSIZE stands for the disk: the log fits, resume.pt does not."""
    process = victim(root, tmp_path, "ShortLosses", 2, THREE)
    until_waiting(process)
    process.kill()
    process.communicate()
    before = (tmp_path / "resume.pt").read_bytes()

    size = len(before) - 2000
    process = victim(root, tmp_path, "ShortLosses", 99, THREE, file_size=size)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    path = tmp_path / "resume.pt"
    last = said.strip().splitlines()[-1]
    assert re.search(rf'Cannot write "{path}": .*last good checkpoint: {path}\)', last), said
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")} == set()
    assert not (tmp_path / "results.json").exists()
    keys = {"OPTIM__MAX_EPOCH": 3}
    results = run(style_config(root, tmp_path, "ShortLosses", **keys))  # with space again, it goes on
    assert results["metrics"] == run(style_config(root, tmp_path / "whole", "ShortLosses", **keys))["metrics"]
