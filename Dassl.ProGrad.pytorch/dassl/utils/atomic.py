"""Files that are either whole or absent: write beside the target, flush to disk, rename over it."""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import threading

from .errors import UserError, WriteFailed


@contextlib.contextmanager
def atomic_path(path):
    """Context manager that gives a temporary name to write to; `path` changes only when the block ends
    without an error.

    Makes the parent folder. A link is followed, so that it keeps pointing where it did.

    Raises:
        WriteFailed: the file cannot be written; the old one, if any, is untouched.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    with _refusals(path):
        os.makedirs(folder, exist_ok=True)
        with _temporary(target, lambda name: os.open(name, os.O_RDWR | os.O_CREAT, 0o666)) as temporary:
            try:
                yield temporary
                _sync(temporary)
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        _sync_folder(folder)


@contextlib.contextmanager
def _refusals(path):
    """The system's refusal to write, as WriteFailed."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error


@contextlib.contextmanager
def _temporary(target, opened):
    """The first of .<name>.0.tmp, .<name>.1.tmp, ... beside `target` that no living process writes, held meanwhile.

    So what a killed process has left is taken over by whoever writes that target next. The kernel says who lives:
    each writer locks its own. opened: makes it, if it is not there -> descriptor.
    """
    folder, name = os.path.split(target)
    for number in itertools.count():
        temporary = os.path.join(folder, f".{name}.{number}.tmp")
        try:
            handle = opened(temporary)
        except PermissionError:
            if not os.path.lexists(temporary):
                raise
            continue  # another user's
        try:
            owned = _owned(handle, temporary)
            if owned is None:  # no locks, so a name that no other process takes
                os.rename(temporary, temporary := os.path.join(folder, f".{name}.{os.getpid()}.tmp"))
            if owned is not False:
                yield temporary
                return
        finally:
            os.close(handle)


def _owned(handle, path):
    """Lock an open file or folder -> whether it is ours, and still has that name; None if the file system has no
    locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False  # who had it has renamed it just now


@contextlib.contextmanager
def atomic_write(path, mode="wb", **open_kwargs):
    """`atomic_path` for one open file: gives the file object. Raises WriteFailed."""
    if "b" not in mode:
        open_kwargs.setdefault("encoding", "utf-8")
    with atomic_path(path) as temporary, open(temporary, mode, **open_kwargs) as file:
        yield file


@contextlib.contextmanager
def atomic_folder(path):
    """Context manager that gives a temporary folder to fill, which becomes `path` when the block ends
    without an error. `path` must be absent or an empty folder by then.

    Files in it must have reached the disk by themselves (atomic_write).

    Raises:
        WriteFailed: the folder cannot be written; nothing of it is left.
    """
    target = os.path.realpath(path)
    with _refusals(path), _temporary(target, _opened_folder) as temporary:
        try:
            for entry in os.scandir(temporary):  # of a killed process
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
            yield temporary
            _sync_folder(temporary)
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(os.path.dirname(target))


def _opened_folder(path):
    os.makedirs(path, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder):
    """The rename itself must reach the disk too; some network file systems refuse, which is no failure."""
    with contextlib.suppress(OSError):
        _sync(folder)


def atomic_save(obj, path):
    """`torch.save(obj)` into `path`, whole or not at all. Raises WriteFailed.

    The file goes to torch as it is, and signals wait until torch is done: an exception of theirs raised inside
    torch's writer would abort the process.
    """
    import torch

    with atomic_write(path) as file, _signals_wait():
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # torch's writer, closing, puts its own RuntimeError over a refused write
            raise _beneath(error) from error


@contextlib.contextmanager
def _signals_wait():
    """Python's handlers of the signals that end a process run at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, before = [], {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)):
                before[number] = signal.getsignal(number)
                signal.signal(number, lambda *call: came.append(call))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in came:
            before[number](number, frame)


def _beneath(error):
    """The OSError, KeyboardInterrupt or SystemExit in whose handling `error` was raised, else `error`."""
    cause = error
    while cause is not None and not isinstance(cause, OSError | KeyboardInterrupt | SystemExit):
        cause = cause.__context__
    return cause or error


def write_json(obj, fpath):
    """Write `obj` as JSON, indent 4. Makes the parent folder. Raises WriteFailed."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))
