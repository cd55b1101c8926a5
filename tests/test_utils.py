"""Files, locks, logs, registries and meters."""

import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    MissingFile,
    Registry,
    RunLock,
    UserError,
    WriteFailed,
    atomic_save,
    atomic_write,
    check_availability,
    check_isfile,
    closest,
    collect_env_info,
    digest,
    download_url,
    get_logger,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    logging_to,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    sha256_file,
    tolist_if_not,
    write_json,
)


def python(code, *args, **kwargs):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, **kwargs)


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
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="bad.json"):
        read_json("bad.json")
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
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
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


def test_registry_and_nearest_names():
    registry = Registry("TRAINER")

    @registry.register()
    class CoOp:
        pass

    assert registry.get("CoOp") is CoOp
    assert registry.register(Registry) is None
    assert registry.registered_names() == ["CoOp", "Registry"]
    assert "CoOp" in registry
    with pytest.raises(KeyError, match='"CoOp" was already registered in "TRAINER" registry'):
        registry.register(CoOp)
    registry.register(CoOp, force=True)
    with pytest.raises(KeyError) as caught:
        registry.get("coop")
    assert str(caught.value).startswith('Object name "coop" does not exist in "TRAINER" registry (nearest: CoOp')
    assert isinstance(caught.value, UserError)


def test_nearest_names():
    assert closest("coop", ["KgCoOp", "CoOp", "MaPLe"], n=2) == ["CoOp", "KgCoOp"]
    assert closest("x", []) == []
    assert get_most_similar_str_to_a_from_b("CoOpp", ["KgCoOp", "CoOp"]) == "CoOp"
    check_availability("CoOp", ["CoOp"])
    message = r"expected to belong to \[CoOp, KgCoOp\], but got \[CoOpp\] \(do you mean \[CoOp\]\?\)"
    with pytest.raises(ValueError, match=message):
        check_availability("CoOpp", ["CoOp", "KgCoOp"])


def test_meters_show_last_and_average():
    meter = MetricMeter()
    meter.update({"loss": 1, "acc": 50.0})
    meter.update(None)
    meter.update({"loss": torch.tensor(3.0, requires_grad=True), "acc": torch.tensor([100.0])})
    assert str(meter) == "loss 3.0000 (2.0000) acc 100.0000 (75.0000)"
    assert str(MetricMeter(delimiter="\t")) == ""
    with pytest.raises(TypeError, match="must be a dictionary"):
        meter.update([1.0])
    with pytest.raises(ValueError, match="shape"):
        meter.update({"loss": torch.zeros(2)})


def test_average_meter():
    smooth = AverageMeter(ema=True)
    for value in (1, 3):
        smooth.update(value)
    assert smooth.avg == pytest.approx(0.39)
    plain = AverageMeter()
    assert plain.avg == 0
    plain.update(2.0, n=3)
    plain.update(4.0)
    assert (plain.val, plain.sum, plain.count, plain.avg) == (4.0, 10.0, 4, 2.5)


def test_one_run_logs_lines_prints_warnings_and_its_traceback(tmp_path, capsys):
    before = sys.stdout
    with pytest.warns(match="be careful"), pytest.raises(RuntimeError), logging_to(tmp_path):
        get_logger().info("a line")
        print("a print")
        warnings.warn("be careful", stacklevel=1)
        assert sys.stdout.isatty() == before.isatty()
        raise RuntimeError("it broke")
    assert sys.stdout is before
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith("a line\na print\n")
    assert "UserWarning: be careful" in text
    assert text.endswith("RuntimeError: it broke\n")
    print("still here")
    get_logger().info("and here")
    assert capsys.readouterr().out == "a line\na print\nstill here\nand here\n"
    with logging_to(tmp_path):
        get_logger().info("second run")
    assert (tmp_path / "log.txt").read_text() == text
    (later,) = tmp_path.glob("log.txt-20*")
    assert later.read_text() == "second run\n"


def test_logger_never_closes_the_console(tmp_path, capsys):
    logger = Logger(tmp_path / "run.log")
    logger.writelines(["bo", "th\n"])
    assert (tmp_path / "run.log").read_text() == "both\n"
    logger.close()
    logger.write("console\n")
    with Logger() as console_only:
        console_only.write("console\n")
    del logger, console_only
    print("alive")
    assert capsys.readouterr().out == "both\nconsole\nconsole\nalive\n"
    assert (tmp_path / "run.log").read_text() == "both\n"


CRASH = """
import sys, warnings
from dassl.utils import setup_logger
setup_logger(sys.argv[1])
setup_logger(None)
print("line")
warnings.warn("careful")
raise RuntimeError("fatal")
"""


def test_setup_logger_for_a_whole_process(tmp_path):
    done = python(CRASH, tmp_path / "named.txt")
    assert done.stdout == "line\n"
    assert "careful" in done.stderr
    assert "RuntimeError: fatal" in done.stderr
    text = (tmp_path / "named.txt").read_text()
    assert text.startswith("line\n")
    assert "careful" in text
    assert text.endswith("RuntimeError: fatal\n")


def test_setup_logger_with_a_bare_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with logging_to("x.log"):
        print("in")
    assert (tmp_path / "x.log").read_text() == "in\n"
    assert setup_logger(None) is None


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


def test_images(tmp_path):
    Image.new("LA", (4, 3), (10, 255)).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (10, 10, 10))
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    for name, words in (("cut.png", "900 bytes"), ("empty.jpg", "0 bytes"), ("none.jpg", "No file exists")):
        with pytest.raises(UserError, match=rf"{words}|{name}.*{words}") as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


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


def test_seeds():
    set_random_seed(1)
    assert random.random() == 0.13436424411240122
    assert np.random.rand() == 0.417022004702574
    assert torch.rand(1).item() == pytest.approx(0.7576315999, abs=1e-9)


def test_environment_report_ends_with_pillow():
    report = collect_env_info()
    assert f"PyTorch version: {torch.__version__}" in report
    assert report.splitlines()[-1] == f"        Pillow ({Image.__version__})"
    assert collect_env_info() is report


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
