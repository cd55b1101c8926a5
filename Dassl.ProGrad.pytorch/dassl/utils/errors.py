"""Errors that are the user's to mend: one class, so that an entry point can print them as one line."""

import contextlib
import sys

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


def printable(text):
    """A message's text without what steers a terminal: such signs as escapes; ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def one_line(text):
    """A name or value from a file for one place of a line or table: a blank for what is no letter or sign."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class WriteFailed(UserError, OSError):
    """A file could not be written (disk full, no permission). The file that stood there before is whole."""


class WrongType(UserError, TypeError):
    """A value of the right name and the wrong type."""


class UnknownName(UserError, KeyError):
    """A name that no registry knows."""


_NO_MEMORY = (  # torch's allocators, C++, Python's threads, the loader of libraries, oneDNN
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "start new thread", "map segment"),
    "could not create a primitive",
)


@contextlib.contextmanager
def memory_errors():
    """What the system or a GPU refused of memory, in Python's, numpy's or torch's words, as UserError."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError) as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        if not isinstance(error, MemoryError) and not any(sign in words for sign in _NO_MEMORY):
            raise
        raise UserError(f"Memory is gone: {words}. Smaller batches or fewer processes need less") from error


@contextlib.contextmanager
def errors_in_one_line(status=1):
    """Around a command: UserError, OSError, lack of memory end it with one line and `status`, an interrupt with 130."""
    try:
        with memory_errors():
            yield
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)  # the log says how to go on
