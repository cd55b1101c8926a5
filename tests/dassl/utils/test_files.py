"""Files written whole or not at all, JSON, locks, digests, downloads."""

import http.server
import json
import os
import signal
import threading

import pytest
import torch

from dassl.utils import (
    MissingFile,
    RunLock,
    UserError,
    WriteFailed,
    atomic_save,
    atomic_write,
    check_isfile,
    digest,
    download_url,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    sha256_file,
    tolist_if_not,
    write_json,
)
from tests.fixtures.interpreter import Python, python


def test_atomic_write_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "made" / "file.txt"
    with atomic_write(target, "w") as file:
        file.write("ä")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "ä"
    with pytest.raises(ZeroDivisionError), atomic_write(target) as file:
        file.write(b"half")
        _ = 1 / 0
    assert target.read_text(encoding="utf-8") == "ä"
    assert os.listdir(target.parent) == ["file.txt"]


def test_atomic_write_follows_links_and_reports_the_path(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_write(tmp_path / "link.txt", "w") as file:
        file.write("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    with pytest.raises(WriteFailed, match="real.txt/below"), atomic_write(tmp_path / "real.txt" / "below"):
        pass


FULL_DISK = """
import resource, signal, sys, torch
from dassl.utils import UserError, atomic_save, write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
weights, text = {"w": torch.ones(300_000)}, "x" * 300_000
for write, obj, path in ((atomic_save, weights, sys.argv[1]), (write_json, text, sys.argv[2])):
    try:
        write(obj, path)
    except UserError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    checkpoint, report = tmp_path / "model.pth.tar-1", tmp_path / "report.json"
    atomic_save({"w": torch.zeros(3)}, checkpoint)
    write_json({"a": 1}, report)
    done = python(FULL_DISK, checkpoint, report)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert str(checkpoint) in first
    assert "too large" in first
    assert str(report) in second
    assert torch.equal(torch.load(checkpoint, weights_only=True)["w"], torch.zeros(3))
    assert read_json(report) == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["model.pth.tar-1", "report.json"]


def test_json_format_and_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json({"b": [1, 2]}, "bare.json")
    assert (tmp_path / "bare.json").read_text() == '{\n    "b": [\n        1,\n        2\n    ]\n}'
    assert read_json("bare.json") == {"b": [1, 2]}
    for content in (b"{", b"\xff\xfe{\0}\0"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match="bad.json"):
            read_json("bad.json")
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf{"b": "\xc3\xa4"}\r\n')  # with a byte order mark
    assert read_json("marked.json") == {"b": "ä"}
    with pytest.raises(MissingFile, match="none.json"):
        read_json("none.json")


HOLDER = """
import os, sys, time
from dassl.utils import RunLock
with RunLock(sys.argv[1]):
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(60)
"""


def test_lock_is_held_by_a_live_process_only(tmp_path):
    holder = Python(["-c", HOLDER, tmp_path])
    pid, child = map(int, holder.stdout.readline().split())
    try:
        with pytest.raises(UserError, match=rf"{tmp_path}.*pid {pid}\)"), RunLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with RunLock(tmp_path):  # the forked child lives on, as an orphaned loader worker would
        os.kill(child, 0)
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    os.kill(child, signal.SIGKILL)
    holder.stdout.close()


def test_a_second_lock_in_the_same_process_is_refused(tmp_path):
    with RunLock(tmp_path / "run"):
        with pytest.raises(UserError, match=str(os.getpid())), RunLock(tmp_path / "run"):
            pass
        with RunLock(tmp_path / "other"):
            pass
    with RunLock(tmp_path / "run"):
        pass


def test_folders_and_files(tmp_path, monkeypatch):
    mkdir_if_missing(tmp_path / "a" / "b")
    mkdir_if_missing(tmp_path / "a" / "b")
    for name in ("z", ".hidden", "c"):
        (tmp_path / "a" / name).touch()
    assert listdir_nohidden(tmp_path / "a", sort=True) == ["b", "c", "z"]
    assert sorted(listdir_nohidden(tmp_path / "a")) == ["b", "c", "z"]
    assert check_isfile(tmp_path / "a" / "c")
    with pytest.warns(UserWarning, match="No file found at"):
        assert not check_isfile(tmp_path / "none")
    assert (tolist_if_not(3), tolist_if_not([3])) == ([3], [3])


def test_digests(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(MissingFile):
        sha256_file(tmp_path / "g")
    assert digest({"b": 1, "a": (2, 3)}) == digest({"a": [2, 3], "b": 1})
    assert len(digest()) == 32
    assert len({digest("ab"), digest("a", "b"), digest(["a", "b"]), digest("a", None)}) == 4
    again = python("from dassl.utils import digest; print(digest('ab', {'x': 1.5}), end='')")
    assert again.stdout == digest("ab", {"x": 1.5})


class OneFile(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/weights"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"a": 1}).encode() if found else b"")

    def log_message(self, *args):
        pass


def test_download(tmp_path):
    server = http.server.HTTPServer(("127.0.0.1", 0), OneFile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        download_url(f"{base}/weights", tmp_path / "w.json")
        assert read_json(tmp_path / "w.json") == {"a": 1}
        with pytest.raises(UserError, match="404"):
            download_url(f"{base}/none", tmp_path / "n.json")
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "n.json").exists()
    with pytest.raises(UserError, match="file:///etc"):
        download_url("file:///etc/hostname", tmp_path / "h")
