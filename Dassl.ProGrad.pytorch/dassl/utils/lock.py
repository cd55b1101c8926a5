"""Locks of the kernel's: one live process per run folder, bank, file. A killed process never leaves one behind."""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator

from .errors import UserError, WriteFailed

_HELD = set()


def take(handle: int) -> bool | None:
    """Lock an open file or folder -> whether no other process had it; None if its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: Callable[[int], object]) -> Iterator[int]:
    """Hold the lock on the file `path`, which is made with its folder and never follows a link -> its descriptor.

    busy: called with the descriptor where another process (or this one, by a second lock) has it; raises, or returns
    to wait.

    Raises:
        WriteFailed: there is no such folder and none can be made, or it cannot be written to.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        reason = f"{os.path.basename(path)} is a link" if error.errno == errno.ELOOP else error.strerror
        raise WriteFailed(f'Cannot write to the folder "{folder}": {reason}') from error
    _HELD.add(handle)
    try:
        free = take(handle)
        if free is None:
            warnings.warn(f'"{folder}" cannot be locked: start one process at a time', stacklevel=3)
        elif not free:
            busy(handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        if handle in _HELD:
            _HELD.discard(handle)
            with contextlib.suppress(OSError):  # a process forked just now holds the file too
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


@contextlib.contextmanager
def RunLock(folder: str | os.PathLike) -> Iterator[None]:  # noqa: N802  a class once
    """Own `folder` while the block lasts.

    Raises:
        UserError: another live process (or this one, by a second lock) owns the folder; named with its pid.
        WriteFailed: as `locked`.
    """

    def busy(handle):
        owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        raise UserError(f'Folder "{folder}" is in use by a running process (pid {owner})')

    with locked(os.path.join(folder, ".lock"), busy) as handle:
        try:
            if os.fstat(handle).st_nlink > 1:
                raise OSError(errno.EMLINK, ".lock is a second name of another file")
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise WriteFailed(f'Cannot write to the folder "{folder}": {error.strerror}') from error
        yield


def _forget_inherited():
    """A forked loader worker must not keep the lock alive after its parent has died."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_inherited)
