"""Files that are either whole or absent: write beside the target, flush to disk, rename over it."""

import contextlib
import json
import os

import torch

from .errors import UserError, WriteFailed


@contextlib.contextmanager
def atomic_write(path, mode="wb", **open_kwargs):
    """Context manager that gives a file object; `path` changes only when the block ends without an error.

    Makes the parent folder. A link is followed, so that it keeps pointing where it did.

    Raises:
        WriteFailed: the file cannot be written; the old one, if any, is untouched.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    if "b" not in mode:
        open_kwargs.setdefault("encoding", "utf-8")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, mode, **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(folder)
    except UserError:
        raise
    except OSError as error:
        raise WriteFailed(f'Cannot write "{path}": {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _sync_folder(folder):
    """The rename itself must reach the disk too; some network file systems refuse, which is no failure."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_save(obj, path):
    """`torch.save(obj)` into `path`, whole or not at all. Raises WriteFailed."""
    with atomic_write(path) as file:
        sink = _Sink(file)
        try:
            torch.save(obj, sink)
        except RuntimeError as error:
            # torch's archive writer reports a refused write as its own RuntimeError
            raise (sink.error or error) from error


class _Sink:
    """File object that remembers why a write failed."""

    def __init__(self, file):
        self.file = file
        self.error = None

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


def write_json(obj, fpath):
    """Write `obj` as JSON, indent 4. Makes the parent folder. Raises WriteFailed."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))
