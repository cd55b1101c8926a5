"""Files that are either whole or absent: write beside the target, flush to disk, rename over it."""

import contextlib
import glob
import itertools
import json
import os
import shutil
import signal
import threading

from .errors import UserError, WriteFailed
from .lock import take


def atomic_path(path):
    """Context manager that gives a temporary name to write to; `path` changes only when the block ends
    without an error.

    Makes the parent folder. A link is followed, so that it keeps pointing where it did.

    Raises:
        WriteFailed: the file cannot be written; the old one, if any, is untouched.
    """
    return _whole(path, lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)))


def atomic_folder(path):
    """`atomic_path` for a folder to fill. `path` must be absent or an empty folder when the block ends.

    Files in it must have reached the disk by themselves (atomic_write).
    """
    return _whole(path, os.mkdir)


@contextlib.contextmanager
def atomic_files(folder, marker, stale=()):
    """`atomic_folder` for files that replace those of the same names in `folder`; `marker`, which says that they belong
    together, goes first and comes last. stale: patterns of what else goes. After a kill in between `begun` is true."""
    new = _new(folder, marker)
    drop_begun(folder, marker)
    with atomic_folder(new) as temporary:
        yield temporary
    for pattern in (marker, *stale):
        for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
            os.unlink(path)
    files = [os.path.join(place, name) for place, _, names in os.walk(new) for name in names]
    for file in sorted(files, key=os.path.join(new, marker).__eq__):
        target = os.path.join(folder, os.path.relpath(file, new))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(file, target)
        _sync(os.path.dirname(target))
    shutil.rmtree(new)


def _new(folder, marker):
    return os.path.join(os.path.realpath(folder), f".{marker}.new")


def drop_begun(folder, marker):
    """Remove what a killed process has left of `atomic_files`; for who has locked the folder."""
    new = glob.escape(_new(folder, marker))
    for path in (*glob.glob(new), *glob.glob(os.path.join(os.path.dirname(new), f".{os.path.basename(new)}.*.tmp"))):
        _remove(path)


def begun(folder, marker):
    """Has a process been killed while it put the files of `atomic_files` in their places?"""
    return os.path.isdir(_new(folder, marker))


@contextlib.contextmanager
def atomic_write(path, mode="wb", **open_kwargs):
    """`atomic_path` for one open file: gives the file object. Raises WriteFailed."""
    if "b" not in mode:
        open_kwargs.setdefault("encoding", "utf-8")
    with atomic_path(path) as temporary, open(temporary, mode, **open_kwargs) as file:
        yield file


@contextlib.contextmanager
def _whole(path, make):
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        raise WriteFailed(f'Cannot write "{path}": it is no plain file')  # but, say, a device
    try:
        os.makedirs(folder, exist_ok=True)
        names = (os.path.join(folder, f".{name}.{number}.tmp") for number in itertools.count())
        temporary, handle = next((found, handle) for found in names if (handle := _claim(found, make)) is not None)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        finally:
            os.close(handle)
        _sync(folder)  # the rename must reach the disk too
    except UserError:
        raise
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error


def _claim(temporary, make):
    """A new file or folder of that name -> its descriptor, which holds a lock on it; None if the name is taken.

    What a killed process has left under it goes. The kernel says who lives: each writer locks its own.
    """
    seen = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    if os.path.lexists(temporary):
        try:
            left = os.open(temporary, seen)
        except OSError:  # a link, or another user's
            return None
        try:
            if not (take(left) and _has_name(left, temporary)):
                return None
            _remove(temporary)
        finally:
            os.close(left)
    try:
        make(temporary)
    except FileExistsError:  # another process was quicker
        return None
    with contextlib.suppress(FileNotFoundError):  # another took it for a dead one's before it was locked
        handle = os.open(temporary, seen)
        if take(handle) is not False and _has_name(handle, temporary):
            return handle
        os.close(handle)
    return None


def _has_name(handle, path):
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    return False


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)


def _sync(path):
    # some network file systems refuse it for folders, which is no failure
    with contextlib.suppress(OSError) if os.path.isdir(path) else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_save(obj, path):
    """`torch.save(obj)` into `path`, whole or not at all. Raises WriteFailed.

    The file goes to torch as it is, and signals wait until torch is done: an exception of theirs raised inside
    torch's writer would abort the process.
    """
    import torch

    with atomic_write(path) as file, signals_wait():
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # torch's writer, closing, puts its own RuntimeError over a refused write
            raise _beneath(error) from error


@contextlib.contextmanager
def signals_wait():
    """Python's handlers of the signals that end a process run at the end of the block; a process that starts in it
    hears none of these signals until it unblocks them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, before, blocked = [], {}, signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)):
                before[number] = signal.getsignal(number)
                signal.signal(number, lambda *call: came.append(call))
        signal.pthread_sigmask(signal.SIG_BLOCK, before)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
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
