"""What a run prints, in its log as well."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from dassl.utils import (
    Logger,
    get_logger,
    logging_to,
    quiet,
    setup_logger,
)
from dassl.utils.progress import progress
from tests.fixtures.interpreter import PATH, python


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
    assert (tmp_path / "log.txt").read_text() == "second run\n"
    (earlier,) = tmp_path.glob("log-20*.txt")
    assert earlier.read_text() == text
    os.utime(tmp_path / "log.txt", ns=(earlier.stat().st_mtime_ns,) * 2)
    with logging_to(tmp_path):
        get_logger().info("third run")
    assert {path.read_text() for path in tmp_path.glob("log*")} == {text, "second run\n", "third run\n"}


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


def test_debug_lines_are_for_the_log_file_where_there_is_one(tmp_path, capsys):
    get_logger().debug("no file")
    with logging_to(tmp_path):
        get_logger().debug("the file's")
        get_logger().info("both")
    assert capsys.readouterr().out == "no file\nboth\n"
    assert (tmp_path / "log.txt").read_text() == "the file's\nboth\n"


ASCII = r"""
import sys
from dassl.utils import get_logger, logging_to
with logging_to(sys.argv[1]):
    get_logger().info("71.56 \u00b1 0.13 \u2014 \u4e2d")
print("and a print \u00b1")
"""


def test_a_terminal_of_ascii_shows_escapes_and_the_log_keeps_the_line(tmp_path):
    env = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": PATH}
    done = subprocess.run([sys.executable, "-c", ASCII, tmp_path], env=env, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"71.56 \\xb1 0.13 \\u2014 \\u4e2d\nand a print \\xb1\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "71.56 \u00b1 0.13 \u2014 \u4e2d\n"


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self):
        return True


def test_a_bar_with_an_eta_is_on_standard_error_and_lines_go_above_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Screen())
    with progress(total=4, what="working", delay=0, mininterval=0) as bar:
        bar.update(2)
        get_logger().info("a line")
    shown = sys.stderr.getvalue()
    assert capsys.readouterr().out == "a line\n"
    assert "working:  50%" in shown and "2/4 [" in shown and "<" in shown
    assert shown.count("working:  50%") == 2  # again below the line


def test_without_a_terminal_a_bar_is_a_line_now_and_then_or_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress(range(1000), "short")) == list(range(1000))
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr("dassl.utils.progress.EVERY", 0.0)
    for _ in progress(range(3), "long"):
        pass
    lines = sys.stderr.getvalue().splitlines()
    assert lines and all(line.startswith("long: ") and "<" in line for line in lines) and "\r" not in "".join(lines)


TALK = r"""
import os, sys
from dassl.utils import UserError, errors_in_one_line, get_logger
with errors_in_one_line():
    for number in range(3):
        get_logger().info("x" * 10_000)
        print("\u2014")
        sys.stderr.write("bar\n")
        sys.stderr.flush()
    opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(opened, b"%d" % opened)
    if len(sys.argv) > 2:
        raise UserError("wrong")
"""


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", ">/dev/full", ">/dev/null 2>/dev/full", "| head -c 1"])
def test_a_terminal_that_takes_no_more_costs_no_result(tmp_path, shell):
    env = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": PATH}
    (tmp_path / "talk.py").write_text(TALK)
    for words, status in (("", 0), ("fails", 1)):
        line = f"set -o pipefail; {sys.executable} talk.py result {words} {shell}"
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == status
        assert int((tmp_path / "result").read_text()) > 1  # not one of the numbers that others write to unasked
        assert "Traceback" not in done.stderr and "Error" not in done.stderr
        assert ("ends here: No space left" in done.stderr) == (shell == ">/dev/full")
        assert ("error: wrong" in done.stderr) == (status == 1 and "2>" not in shell)


def test_a_quiet_block_says_what_is_at_least_so_grave_and_ends_with_an_error(capsys):
    log = get_logger()
    for level, said in ((logging.ERROR, "wrong\n"), (logging.WARNING, "odd\nwrong\n")):
        with pytest.raises(RuntimeError), quiet(level):
            log.info("usual")
            log.warning("odd")
            log.error("wrong")
            raise RuntimeError
        assert capsys.readouterr().out == said
    log.info("usual")
    assert capsys.readouterr().out == "usual\n"
