"""What a reader may do with a file, and what it did: one input in, one verdict out.

A reader returns, or raises UserError or OSError (the command line prints both as one line) with a line that names
the file. All else is a failure: another exception, a line without the name, or too long, or with control
characters; a process started, a file written, code run; too much time; much memory for a small file.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dassl.utils import UserError

Files = dict[str, bytes | str]  # name in the input folder -> content, or one of ODD
ODD = ("directory", "fifo", "loop", "dangling", "sparse")  # what may lie where a file is expected
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S, BLOCKED_S = 5.0, 30.0  # a read may work, and wait, so long: a busy machine shall not make a hang
TRACED = 4  # counting lines takes so many times as long
LONGEST = 2000  # characters of an error line
LEAST_MEMORY, PER_BYTE = 256 << 20, 800  # a read may take so much, and so much a byte: 100 pixels of Pillow's 8
HEADROOM = 1 << 30  # of address space beyond what the process has: more fails inside the reader
CANARY = "canary"  # what the hostile payloads would make, in the current folder
WRITES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
RUNS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen",
        "socket.connect", "socket.bind", "ctypes.dlopen", "pty.spawn", "webbrowser.open"}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader. make: draws an input. read: reads one from its folder. covers: the modules whose lines are counted,
    by their path in the repository. names: what an error line may hold in place of a path in the folder. prepare:
    makes what inputs share, in the folder above. child: the program that the reader may start. writes: whether it may
    write below the folder."""

    name: str
    make: Callable[..., Files]
    read: Callable[[Path], object]
    covers: tuple[str, ...]
    names: tuple[str, ...] = ()
    errors: tuple[type[BaseException], ...] = (UserError, OSError)
    prepare: Callable[[Path], object] | None = None
    weight: int = 4  # its share of the inputs
    child: str = ""
    writes: bool = False


@dataclass(frozen=True)
class Verdict:
    """kind: "read", "refused", or what is wrong. where: innermost line of ours, for telling failures apart."""

    kind: str
    detail: str = ""
    where: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in ("read", "refused")


class Hang(BaseException):
    """The alarm; no reader may catch it."""


class Watch:
    """Python's audit events while a reader is at work: what it started and what it changed."""

    def __init__(self):
        self.active, self.seen, self.child = False, [], ""
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if not self.active:
            return
        if self.child and event == "subprocess.Popen" and self.child in args[1] and args[0] == sys.executable:
            return
        if event in RUNS:
            self.seen.append(("ran code", f"{event} {args[0] if args else ''!r}"))
        elif event in WRITES or (event == "open" and self._writes(args)):
            self.seen.append(("wrote", f"{event} {args[0]!r}"))

    @staticmethod
    def _writes(args):
        flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and args[0] not in (os.devnull, "/dev/null")

    @contextlib.contextmanager
    def __call__(self, child: str = "") -> Iterator[list]:
        self.seen, self.child, self.active = [], child, True
        try:
            yield self.seen
        finally:
            self.active = False


def address_space(field: str) -> int:
    """VmSize or VmPeak of this process, bytes."""
    with open("/proc/self/status", "rb") as file:
        line = next(line for line in file if line.startswith(field.encode()))
    return int(line.split()[1]) << 10


def confine(watch: Watch) -> None:
    """Limits of a fuzzing process: address space, core dumps; an alarm that raises Hang."""
    most = address_space("VmSize:") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def ring(*_):
        if watch.active:
            raise Hang(f"more than {LIMIT_S:g} s of work, or {BLOCKED_S:g} s of waiting")

    signal.signal(signal.SIGALRM, ring)
    signal.signal(signal.SIGPROF, ring)


def judge(target: Target, files: Files, folder: Path, watch: Watch) -> Verdict:
    """Write the files to the empty folder, have them read there, and say how it went; the folder is empty again."""
    place(files, folder)
    before, size = listing(folder), (address_space("VmSize:"), address_space("VmPeak:"))
    error, kind = None, "read"
    with watch(target.child) as seen:
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S * (TRACED if sys.gettrace() else 1))
        signal.setitimer(signal.ITIMER_REAL, BLOCKED_S)
        try:
            target.read(folder)
            watch.active = False  # an alarm from here on is too late to count
        except Hang as hang:
            kind, error = "hang", hang
        except target.errors as refusal:
            watch.active = False
            kind, error = "refused", refusal
        except BaseException as wrong:
            watch.active = False
            kind, error = f"exception {type(wrong).__name__}", wrong
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    verdict = Verdict(kind, _line(error), _where(error))
    if kind in ("read", "refused"):
        if target.writes:
            seen = [(what, detail) for what, detail in seen if what != "wrote" or str(folder) not in detail]
            shutil.rmtree(folder / "out", ignore_errors=True)
        verdict = _beside(seen, files, folder, before, size, error, verdict)
        if verdict.kind == "refused":
            verdict = _worded(target, folder, verdict)
    clear(folder)
    return verdict


def _beside(seen, files, folder, before, size, error, verdict) -> Verdict:
    """What a reader did beside reading."""
    if seen:
        return Verdict(*seen[0], verdict.where)
    if os.path.exists(CANARY):
        os.unlink(CANARY)
        return Verdict("ran code", "the canary is there", verdict.where)
    same = all((folder / name).read_bytes() == given for name, given in files.items() if isinstance(given, bytes))
    if not same or listing(folder) != before:
        return Verdict("wrote", f"{before} became {listing(folder)}", verdict.where)
    peak = address_space("VmPeak:")
    grown = peak - size[0] if peak > size[1] else 0
    packed = sum(map(len, files.values()))
    sparse = "sparse" in files.values()  # a terabyte: it cannot be mapped, and that is a refusal like another
    if grown > LEAST_MEMORY + PER_BYTE * packed or (_out_of_memory(error) and not sparse):
        return Verdict("memory", f"{grown >> 20} MiB for {packed} bytes: {verdict.detail}", verdict.where)
    return verdict


def _worded(target: Target, folder: Path, verdict: Verdict) -> Verdict:
    """A refusal's line: it names the file, is short, and can be printed."""
    line = verdict.detail
    if not any(name in line for name in (str(folder), *target.names)):
        return Verdict("unnamed", line[:LONGEST], verdict.where)
    if len(line) > LONGEST:
        return Verdict("long line", f"{len(line)} characters: {line[:200]}", verdict.where)
    if not line.isprintable():
        return Verdict("unprintable line", repr(line[:LONGEST]), verdict.where)
    return verdict


def _line(error: BaseException | None) -> str:
    return "" if error is None else " ".join(str(error).split())


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether a refusal came of an allocation that failed."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate" in str(error) or "Cannot allocate" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException | None) -> str:
    """The innermost line of the repository, and the innermost of all."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-60:]
    ours = [f for f in frames if f.filename.startswith(f"{ROOT}/") and "/.venv/" not in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], *frames[-1:])]
    return " < ".join(dict.fromkeys(places))


def place(files: Files, folder: Path) -> None:
    """The files, below the folder."""
    for name, content in files.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "directory":
            path.mkdir()
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "sparse":
            with open(path, "wb") as file:
                file.truncate(1 << 40)
        else:
            path.symlink_to(path if content == "loop" else path.parent / "nowhere")


def listing(folder: Path) -> dict[str, tuple]:
    """Everything below a folder with its size and time."""
    found = {}
    for entry in os.scandir(folder):
        state = entry.stat(follow_symlinks=False)
        found[entry.path] = (state.st_size, state.st_mtime_ns)
        if entry.is_dir(follow_symlinks=False):
            found |= listing(Path(entry.path))
    return found


def clear(folder: Path) -> None:
    """Empty a folder."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            clear(Path(entry.path))
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)
