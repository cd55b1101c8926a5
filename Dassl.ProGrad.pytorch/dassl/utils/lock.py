"""One live process per run folder. The kernel holds the lock, so a killed run never leaves one behind."""

import fcntl
import os
import warnings

from .errors import UserError, WriteFailed

_HELD = set()


class RunLock:
    """Context manager that owns `folder` while it lasts.

    Raises:
        UserError: another live process (or this one, by a second lock) owns the folder; named with its pid.
        WriteFailed: there is no such folder and none can be made, or it cannot be written to.
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        self._handle = None

    def __enter__(self):
        try:
            os.makedirs(self.folder, exist_ok=True)
            handle = os.open(os.path.join(self.folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WriteFailed(f'Cannot write to the folder "{self.folder}": {error.strerror}') from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise UserError(f'Folder "{self.folder}" is in use by a running process (pid {owner})') from None
        except OSError as error:
            message = f'"{self.folder}" cannot be locked ({error.strerror}): start one run at a time'
            warnings.warn(message, stacklevel=2)
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(handle)
            raise WriteFailed(f'Cannot write to the folder "{self.folder}": {error.strerror}') from error
        self._handle = handle
        _HELD.add(handle)
        return self

    def __exit__(self, *exc_info):
        if self._handle in _HELD:
            _HELD.discard(self._handle)
            os.close(self._handle)
        self._handle = None


def _forget_inherited():
    """A forked loader worker must not keep the lock alive after its parent has died."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_inherited)
