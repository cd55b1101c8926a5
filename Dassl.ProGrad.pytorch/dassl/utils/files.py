"""Files: whole or absent, owned by one live process, and checked before they are read.

What is written goes beside its target and is renamed over it. Locks are the kernel's: a killed process leaves none.
"""

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import os
import re
import shutil
import signal
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from .errors import MissingFile, UserError, WriteFailed

StrPath = str | os.PathLike
MOST_TEXT = 1 << 30  # bytes; a table of a million images has a tenth of it
_HELD: set[int] = set()  # descriptors of locks

# Locks


def _take(handle: int) -> bool | None:
    """Lock an open file or folder -> whether no other process had it; None if its file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(path: StrPath, busy: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock on the file `path`, which is made with its folder, never follows a link, and says the pid.

    busy: called where another process (or this one, by a second lock) has it; raises, or returns to wait.
    UserError: another one has it, and no `busy` says what to do. WriteFailed: there is no such folder and none can be
    made, or it cannot be written to.
    """
    folder, name = os.path.split(os.fspath(path))
    handle = -1
    try:
        try:
            os.makedirs(folder or ".", exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            _HELD.add(handle)
            free = _take(handle)
            if free is None:
                warnings.warn(f'"{folder}" cannot be locked: start one process at a time', stacklevel=3)
            elif not free:
                owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                if busy is None:
                    raise UserError(f'Folder "{folder}" is in use by a running process (pid {owner})')
                busy()
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink > 1:
                raise OSError(errno.EMLINK, f"{name} is a second name of another file")
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except UserError:
            raise
        except OSError as error:
            reason = f"{name} is a link" if error.errno == errno.ELOOP else error.strerror
            raise WriteFailed(f'Cannot write to the folder "{folder}": {reason}') from error
        yield
    finally:
        if handle in _HELD:
            _HELD.discard(handle)
            with contextlib.suppress(OSError):  # a process forked just now holds the file too
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def RunLock(folder: StrPath) -> contextlib.AbstractContextManager[None]:  # noqa: N802  a class once
    """Own `folder` while the block lasts. Raises UserError that names the pid of another owner, or as `locked`."""
    return locked(os.path.join(folder, ".lock"))


def _forget_inherited():
    """A forked loader worker must not keep the lock alive after its parent has died."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget_inherited)

# Writing


def atomic_path(path: StrPath) -> contextlib.AbstractContextManager[str]:
    """Gives a temporary name to write to; `path` changes only when the block ends without an error.

    Makes the parent folder. A link is followed, so that it keeps pointing where it did.
    WriteFailed: the file cannot be written; the old one, if any, is untouched.
    """
    return _whole(path, lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)))


def atomic_folder(path: StrPath) -> contextlib.AbstractContextManager[str]:
    """`atomic_path` for a folder to fill with files of `atomic_write`; `path` must be absent or an empty folder."""
    return _whole(path, os.mkdir)


@contextlib.contextmanager
def atomic_files(folder: StrPath, marker: str, stale: Iterable[str] = ()) -> Iterator[str]:
    """`atomic_folder` for files that replace those of the same names in `folder`; `marker`, which says that they belong
    together, goes first and comes last. stale: patterns of what else goes. After a kill in between `begun` is true."""
    new = _new(folder, marker)
    drop_begun(folder, marker)
    with atomic_folder(new) as temporary:
        yield temporary
    for pattern in (marker, *stale):
        for path in glob.glob(os.path.join(glob.escape(os.fspath(folder)), pattern)):
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


def drop_begun(folder: StrPath, marker: str) -> None:
    """Remove what a killed process has left of `atomic_files`; for who has locked the folder."""
    new = _new(folder, marker)
    for path in (new, *glob.glob(f"..{glob.escape(marker)}.new.*.tmp", root_dir=folder)):
        _remove(os.path.join(os.path.realpath(folder), path))


def begun(folder: StrPath, marker: str) -> bool:
    """Has a process been killed while it put the files of `atomic_files` in their places?"""
    return os.path.isdir(_new(folder, marker))


@contextlib.contextmanager
def atomic_write(path: StrPath, mode: str = "wb", **open_kwargs: Any) -> Iterator[IO]:
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
        temporary, handle = next((name, handle) for name in names if (handle := _claim(name, make)) is not None)
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
    new = True
    try:
        make(temporary)
    except FileExistsError:
        new = False
    try:
        handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:  # a link, another user's, or gone
        if new and not isinstance(error, FileNotFoundError):
            raise
        return None
    free, mine = _take(handle), False
    with contextlib.suppress(FileNotFoundError):  # another took it for a dead one's before it was locked
        mine = (free or new and free is None) and os.path.samestat(os.fstat(handle), os.lstat(temporary))
    if mine and new:
        return handle
    if mine:
        _remove(temporary)
    os.close(handle)
    return _claim(temporary, make) if mine else None


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


def write_json(obj: object, fpath: StrPath) -> None:
    """Write `obj` as JSON, indent 4. Makes the parent folder. Raises WriteFailed."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def atomic_save(obj: object, path: StrPath) -> None:
    """`torch.save(obj)` into `path`, whole or not at all. Raises WriteFailed.

    The file goes to torch as it is, and signals wait until torch is done: an exception of theirs raised inside
    torch's writer would abort the process.
    """
    import torch

    with atomic_write(path) as file, signals_wait():
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            cause: BaseException | None = error  # torch, closing, puts its own over a refused write
            while cause is not None and not isinstance(cause, OSError | KeyboardInterrupt | SystemExit):
                cause = cause.__context__
            raise (cause or error) from error


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Python's handlers of the signals that end a process run at the end of the block; a process that starts in it
    hears none of them until it unblocks them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict = {}
    came, blocked = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
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


# Reading


def check_file(fpath: StrPath, most: float = float("inf")) -> os.stat_result:
    """Raise MissingFile unless `fpath` is there, UserError unless it is a plain, readable file of at most `most` bytes.

    A pipe would be waited for without end.
    """
    try:
        state = os.stat(fpath)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name for a file
        raise MissingFile(f'File is not found at "{fpath}"') from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise MissingFile(f'File is not found at "{fpath}": {error.strerror}') from None
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f'"{fpath}" is no plain file')
    if not os.access(fpath, os.R_OK):
        raise UserError(f'"{fpath}" may not be read: {os.strerror(errno.EACCES)}')
    if state.st_size > most:
        raise UserError(f'"{fpath}" has {state.st_size} bytes, expected at most {most}')
    return state


# What lies in the place of a file that was not downloaded, or not from its own address: how it begins -> what it is
STAND_INS = {
    rb"version https://git-lfs": "a Git LFS pointer: the file that it stands for was not downloaded (git lfs pull)",
    rb"\s*<(!doctype html|html|head|\?xml|!--)": "a web page: its address leads to a page and not to the file",
    rb"\Z": "empty",
}


def stand_in(head: bytes, kinds: Mapping[bytes, str] = STAND_INS) -> str:
    """What a file is, by its first bytes, if it is one of `kinds`; else ""."""
    return next((kind for pattern, kind in kinds.items() if re.match(pattern, head, re.IGNORECASE)), "")


def read_text(fpath: StrPath) -> str:
    """Content of a text file in UTF-8, without the byte order mark that Windows' programs put before it.
    MissingFile: no such file. UserError: no plain file, more than MOST_TEXT bytes, or not UTF-8."""
    check_file(fpath, MOST_TEXT)
    try:
        with open(fpath, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f'"{fpath}" is no text in UTF-8: {error}') from None


def _each_once(pairs):
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands twice in one object')
    return named


def read_json(fpath: StrPath) -> Any:
    """Parsed JSON file. Raises MissingFile, or UserError if it is not JSON or names a thing twice."""
    text = read_text(fpath)
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except ValueError as error:
        reason = stand_in(text[:512].encode()) or f"not a JSON file: {error}"
        raise UserError(f'"{fpath}" is {reason}') from error
    except RecursionError:
        raise UserError(f'"{fpath}" is not a JSON file that can be read: nested too deep') from None
