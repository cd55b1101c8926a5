"""Errors that are the user's to mend: one class, so that an entry point can print them as one line."""

import contextlib
import errno
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
LONGEST = 1500  # characters of a message: what it quotes of a file may be of any length


class UserError(ValueError):
    """Bad input. The message names the thing, what was expected and what is available. What it quotes is shown as
    printable characters, and cut in the middle if it is long."""

    def __str__(self):
        text = str(self.args[0]) if self.args else ""
        if "Original Traceback" in text:
            # torch raises a loader worker's error again with the worker's traceback before its own words
            text = text.rpartition(f".{type(self).__name__}: ")[2].rstrip()
        text = printable(text)
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-290:]}"


def printable(text: str) -> str:
    """A message's text without what steers a terminal: such signs as escapes; ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def one_line(text: str) -> str:
    """A name or value from a file for one place of a line or table: a blank for what is no letter or sign."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


def brief(value: object, most: int = 200) -> str:
    """The repr of what a file brought, for an error: of at most `most` characters, and made without walking all of
    it, since a few bytes can stand for more than any memory holds."""
    text = _SHORT.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class WriteFailed(UserError, OSError):
    """A file could not be written (disk full, no permission). The file that stood there before is whole."""


class WrongType(UserError, TypeError):
    """A value of the right name and the wrong type."""


class UnknownName(UserError, KeyError):
    """A name that no registry knows."""


_LIMITS = {  # what a refusal of the system's looks like -> which, and what helps
    r"killed by signal: Bus|shared memory\(shm\)|</torch_\d":
        "There is no space left in /dev/shm, where loader workers put batches: DATALOADER.NUM_WORKERS 0 needs none",
    r"DataLoader worker exited unexpectedly":
        "A worker that loads images is gone: is there enough memory for DATALOADER.NUM_WORKERS?",
    r"DataLoader worker \(pid\D* ([\d, ]+)\) (is killed by signal: \w+|exited unexpectedly)":
        r"A worker that loads images is gone (pid \1 \2): is there enough memory for DATALOADER.NUM_WORKERS?",
    r"Too many open files": "Too many files are open: raise the limit (ulimit -n), or DATALOADER.NUM_WORKERS 0",
    # torch's allocators, numpy, C++, Python's threads, the loader of libraries, oneDNN
    r"(.*(out of memory|allocate memory|not enough memory|Unable to allocate|bad_alloc|start new thread|map segment|"
    r"could not create a primitive).*|^MemoryError)":
        r"Memory is gone: \1. Smaller batches or fewer processes need less",
}  # fmt: skip


def limit_reached(error: BaseException) -> str:
    """What an error says of memory, files and space that the system has no more of; "" if it is of something else."""
    text = str(error) if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        text = "shared memory(shm)"  # of a semaphore: files have names
    if isinstance(error, ConnectionError) and "multiprocessing" in "".join(traceback.format_tb(error.__traceback__)):
        text = "DataLoader worker exited unexpectedly"  # while it handed over a batch
    for pattern, line in _LIMITS.items():
        if match := re.search(pattern, text):
            return match.expand(line)
    return ""


class LastingStream:
    """An open text stream that never fails: a closed terminal, `| head` and a full disk behind it cost no result. A
    terminal of few characters shows the others as escapes. name: in the line that says where it ends, on `said_on` or
    standard error."""

    def __init__(self, stream: Any, name: object = "standard output", said_on: Any = None) -> None:
        self._name, self._said_on = name, said_on
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115  takes its number, too
        with contextlib.suppress(AttributeError, OSError):  # a stream of another kind, a pipe that was read from
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(vars(self)["_stream"], name)

    def write(self, text: str) -> int:
        self._keep(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._keep(self._stream.flush)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def _keep(self, act, *args):
        try:
            act(*args)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # also what is in its buffer
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError) and self is not sys.stderr:
                line = f"{self._name} ends here: {error.strerror}; the work goes on\n"
                (self._said_on or sys.stderr).write(line)


@contextlib.contextmanager
def memory_errors(more: Callable[[], str] = lambda: "") -> Iterator[None]:
    """What the system or a GPU has no more of (memory, files, room in /dev/shm), in Python's, numpy's or torch's words,
    as UserError. more: makes the end of its line."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if isinstance(error, UserError) or not (reason := limit_reached(error)):
            raise
        raise UserError(reason + more()) from error


@contextlib.contextmanager
def errors_in_one_line(status: int = 1) -> Iterator[None]:
    """Around a command: UserError, OSError, lack of memory end it with one line and `status`, an interrupt with 130."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    try:
        with memory_errors():
            yield
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.unraisablehook = lambda _: None  # what is left of a half-made object has nothing more to say
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)  # the log says how to go on
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
