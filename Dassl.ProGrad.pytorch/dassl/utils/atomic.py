"""Files that are either whole or absent: write beside the target, flush to disk, rename over it."""

import contextlib
import json
import os
import shutil

import torch

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
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync_folder(folder)
    except UserError:
        raise
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


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
    path = os.fspath(path)
    parent, name = os.path.split(os.path.realpath(path))
    temporary = os.path.join(parent, f".{name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        yield temporary
        _sync_folder(temporary)
        os.rename(temporary, path)
        _sync_folder(parent)
    except UserError:
        raise
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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

    The file goes to torch as it is: in a `write` of our own a signal's exception could be raised inside torch's
    writer, which aborts the process.
    """
    with atomic_write(path) as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # torch's writer, closing, puts its own RuntimeError over a refused write or an interruption
            raise _beneath(error) from error


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
