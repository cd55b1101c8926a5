"""Everything a run prints goes to the terminal and to its log.txt: our lines, other people's prints, warnings
and tracebacks."""

import contextlib
import itertools
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from .errors import LastingStream, printable


class _StdoutHandler(logging.StreamHandler):
    """Writes to whatever sys.stdout is now, so that lines follow the tee below; level DEBUG to its file alone."""

    def __init__(self):
        logging.Handler.__init__(self)
        if hasattr(sys.stdout, "reconfigure"):  # a terminal of few characters shows the others as escapes
            sys.stdout.reconfigure(errors="backslashreplace")

    @property
    def stream(self):
        return sys.stdout

    def format(self, record):
        return printable(super().format(record))  # what it quotes of files or names of them steers no terminal

    def emit(self, record):
        if record.levelno < logging.INFO and isinstance(sys.stdout, Logger):
            sys.stdout.record(self.format(record) + self.terminator)
            return
        with tqdm.external_write_mode(nolock=True):  # a bar on the terminal steps aside
            super().emit(record)


def get_logger(name: str = "dassl") -> logging.Logger:
    """Logger of bare messages on the current standard output; where a run's log file is, `debug` is for that alone."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _StdoutHandler) for handler in logger.handlers):
        logger.addHandler(_StdoutHandler())
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    return logger


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """Nothing below this level is logged."""
    logger = get_logger()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class Logger:
    """Stand-in for sys.stdout that writes to the console and to a file.

    Everything it does not define (isatty, fileno, encoding) is the console's, which it never closes.
    """

    def __init__(self, fpath: str | os.PathLike | None = None, console: Any = None) -> None:
        self.console = console if console is not None else sys.stdout
        self.file = None
        if fpath is not None:
            os.makedirs(os.path.dirname(os.path.abspath(fpath)), exist_ok=True)
            # line by line, so that a killed run keeps its last words
            file = open(fpath, "w", 1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            self.file = LastingStream(file, fpath, self.console)

    def __getattr__(self, name):
        return getattr(vars(self)["console"], name)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def write(self, text: str) -> int:
        """Write to both -> what the console says of its part."""
        self.record(text)
        return self.console.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def record(self, text: str) -> None:
        """Write to the file alone."""
        if self.file is not None:
            self.file.write(text)

    def flush(self) -> None:
        """Both."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """The file alone; what is written later goes to the console."""
        if self.file is not None:
            file, self.file = self.file, None
            file.flush()
            file.close()


def _log_path(output):
    """Path of a new log file: `output` itself if it ends in .txt or .log, else log.txt in that folder.

    One that is there already gets the date of its last line: log-2026-01-02-03-04-05.txt.
    """
    output = os.fspath(output)
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(path):
        stem, ending = os.path.splitext(path)
        stem += time.strftime("-%Y-%m-%d-%H-%M-%S", time.localtime(os.path.getmtime(path)))
        names = (f"{stem}{more}{ending}" for more in itertools.chain([""], map("-{}".format, itertools.count(2))))
        os.rename(path, next(name for name in names if not os.path.exists(name)))
    return path


def _recording(hook, text):
    """`hook`, which first writes the text of what it is called with into the log."""

    def record(*args):
        if isinstance(sys.stdout, Logger):
            sys.stdout.record(text(*args))
        hook(*args)

    record.records = True
    return record


def _text_of_warning(message, category, filename, lineno, file=None, line=None):
    return warnings.formatwarning(message, category, filename, lineno, line)


def setup_logger(output: str | os.PathLike | None = None) -> Logger | None:
    """From now on copy standard output, warnings and a fatal traceback into a log file.

    `output` is a file (.txt, .log) or a folder (log.txt in it); None does nothing. An existing file is kept
    under its date. Returns the Logger, or None.
    """
    if output is None:
        return None
    sys.stdout = logger = Logger(_log_path(output))
    if not hasattr(warnings.showwarning, "records"):
        warnings.showwarning = _recording(warnings.showwarning, _text_of_warning)
    if not hasattr(sys.excepthook, "records"):
        sys.excepthook = _recording(sys.excepthook, lambda *error: "".join(traceback.format_exception(*error)))
    return logger


@contextlib.contextmanager
def logging_to(folder: str | os.PathLike | None) -> Iterator[Logger | None]:
    """`setup_logger` for one run: afterwards standard output and hooks are as before, the file is closed."""
    before = sys.stdout, warnings.showwarning, sys.excepthook
    logger = setup_logger(folder)
    try:
        yield logger
    except BaseException as error:
        if logger is not None and not isinstance(error, SystemExit):
            logger.record(traceback.format_exc())
        raise
    finally:
        sys.stdout, warnings.showwarning, sys.excepthook = before
        if logger is not None:
            logger.close()
