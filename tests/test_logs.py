"""What a run prints, in its log as well."""

import sys
import warnings

import pytest

from dassl.utils import (
    Logger,
    get_logger,
    logging_to,
    setup_logger,
)
from tests.fixtures.interpreter import python


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
