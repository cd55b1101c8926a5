"""One target fuzzed in a process of its own: drawn and mutated inputs, judged; failures once each, made small.

Inputs follow from (seed, target, number), and from which earlier ones reached new lines: those are mutated further.
The process may be killed by what it reads, so its counts lie in shared memory and the parent goes on behind that input.
"""

import contextlib
import json
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.lines import Lines
from tests.fuzz.mutate import mutated
from tests.fuzz.oracle import (
    BLOCKED_S,
    LIMIT_S,
    ODD,
    Files,
    Target,
    Verdict,
    Watch,
    clear,
    confine,
    judge,
    listing,
    place,
)

SAMPLE = 8  # one input in so many is traced for new lines, and each of the first of them
FIRST = 100
LARGEST = 1 << 20  # bytes of a file, but for the bombs, which are below it
WARM = 5  # inputs read before any counts
KEPT = 300  # inputs of a corpus
SMALLER_S = 5.0  # seconds for making a failing input small
PATIENCE_S = 4 * BLOCKED_S  # without an input done: the process is stuck where no alarm reaches it


@dataclass
class Failure:
    """One kind of failure: the first input that had it, and how many did."""

    target: str
    kind: str
    detail: str
    where: str
    seed: int
    number: int
    count: int = 1
    saved: str = ""

    @property
    def key(self) -> tuple:
        return self.target, self.kind, self.where

    def __str__(self):
        return (
            f"{self.target}: {self.kind} at {self.where or '?'} ({self.count} times; seed {self.seed}, input "
            f"{self.number}, saved as {self.saved}): {self.detail[-300:]}"
        )


@dataclass
class Report:
    """What became of the inputs of a target."""

    target: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    lines: dict[str, list[int]] = field(default_factory=dict)


class Counts:
    """Four numbers that survive the process: input in hand (from 1), read, refused, failed."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 32)

    def get(self) -> tuple[int, ...]:
        return struct.unpack("4q", self._memory[:32])

    def set(self, *values: int) -> None:
        self._memory[:32] = struct.pack("4q", *values)


def draw(target: Target, rng: Random, corpus: list[Files]) -> Files:
    """The next input: a new one, or changes of one that reached something."""
    if not corpus or rng.random() < 0.4:
        files = target.make(rng)
    else:
        files = dict(rng.choice(corpus))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            name = rng.choice(list(files))
            other = rng.choice(corpus).get(name, b"")
            if isinstance(files[name], bytes):
                files[name] = mutated(rng, name, files[name], other if isinstance(other, bytes) else b"")
    if rng.random() < 0.005:
        name = rng.choice(list(files))
        if rng.random() < 0.8 or len(files) == 1:
            return {**files, name: rng.choice(ODD)}
        return {other: content for other, content in files.items() if other != name}
    return files


def smaller(target: Target, files: Files, verdict: Verdict, folder: Path, watch: Watch) -> Files:
    """Files with as little as can be in them that fail in the same way."""
    end = time.monotonic() + (SMALLER_S if verdict.kind != "hang" else 4 * LIMIT_S)

    def same(trial):
        found = judge(target, trial, folder, watch)
        return (found.kind, found.where) == (verdict.kind, verdict.where)

    for name in sorted(files, key=lambda name: -len(files[name])):
        data = files[name]
        step = len(data) // 2 if isinstance(data, bytes) else 0
        while step and time.monotonic() < end:
            start = 0
            while start < len(data) and time.monotonic() < end:
                less = data[:start] + data[start + step :]
                if same(files | {name: less}):
                    data, files = less, files | {name: less}
                else:
                    start += step
            step //= 2
    return files


def save(files: Files, verdict: Verdict, target: Target, seed: int, number: int, below: Path) -> str:
    """A failing input as a folder, with a note of how it failed."""
    folder = below / f"{target.name}_{seed}_{number}"
    with contextlib.suppress(FileNotFoundError):
        clear(folder)
    (folder / "input").mkdir(parents=True, exist_ok=True)
    place(files, folder / "input")
    note = {"target": target.name, "seed": seed, "number": number, **asdict(verdict)}
    (folder / "verdict.json").write_text(json.dumps(note, indent=1))
    return str(folder)


class Worker:
    """The fuzzing process."""

    def __init__(self, target: Target, seed: int, work: Path, saved: Path, counts: Counts):
        self.target, self.seed, self.saved, self.counts = target, seed, saved, counts
        self.folder, self.state = work / "in", work / "state.json"
        self.lines, self.corpus, self.failures = Lines(target.covers), [], {}

    def run(self, start: int, end: int) -> None:
        os.chdir(self.folder.parent)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        for i in range(WARM):  # late imports, which write byte code, are over then
            place(self.target.make(Random(i)), self.folder)
            with contextlib.suppress(Exception):
                self.target.read(self.folder)
            clear(self.folder)
        self.watch = Watch()
        confine(self.watch)
        for number in range(start, end):
            self.one(number)
            if number % 200 == 0:
                self.flush()
        self.flush()

    def one(self, number: int) -> None:
        rng = Random(f"{self.seed}/{self.target.name}/{number}")
        try:
            files = draw(self.target, rng, self.corpus)
        except (RecursionError, MemoryError):  # the harness's own: a tree too deep to be written
            files = self.target.make(Random(0))
        files = {name: content[:LARGEST] for name, content in files.items()}
        _, *tally = self.counts.get()
        self.counts.set(number + 1, *tally)
        before = self.lines.count
        with self.lines() if number < FIRST or number % SAMPLE == 0 else contextlib.nullcontext():
            verdict = judge(self.target, files, self.folder, self.watch)
        if self.lines.count > before:
            self.corpus[KEPT - 1 :] = []
            self.corpus.append(files)
        self.log_metrics(number, files, verdict)

    def log_metrics(self, number: int, files: Files, verdict: Verdict) -> None:
        """Count a verdict; keep the input of a failure."""
        _, *tally = self.counts.get()
        tally[2 if verdict.failed else 1 if verdict.kind == "refused" else 0] += 1
        self.counts.set(number + 1, *tally)
        if verdict.failed:
            self.failed(number, files, verdict)

    def failed(self, number: int, files: Files, verdict: Verdict) -> None:
        failure = Failure(self.target.name, verdict.kind, verdict.detail, verdict.where, self.seed, number)
        if failure.key in self.failures:
            self.failures[failure.key].count += 1
            return
        files = smaller(self.target, files, verdict, self.folder, self.watch)
        failure.saved = save(files, verdict, self.target, self.seed, number, self.saved)
        self.failures[failure.key] = failure
        self.flush()

    def flush(self) -> None:
        state = {
            "failures": [asdict(failure) for failure in self.failures.values()],
            "lines": {module: sorted(lines) for module, lines in self.lines.seen.items()},
        }
        temporary = self.state.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.rename(self.state)


def _wait(pid: int, counts: Counts) -> str:
    """Until the process ends -> how it died, "" if it did not. One that makes no progress is killed."""
    last, since = None, time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return f"crash {signal.Signals(os.WTERMSIG(status)).name}"
            return "" if os.WEXITSTATUS(status) == 0 else f"crash exit {os.WEXITSTATUS(status)}"
        now = counts.get()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hang that no alarm ends"
        time.sleep(0.02)


def campaign(target: Target, inputs: int, seed: int, saved: Path, make: type[Worker] = Worker) -> Report:
    """Fuzz a target with so many inputs. Failing ones are saved below `saved`, each as a folder."""
    report, counts, began = Report(target.name), Counts(), time.monotonic()
    found: dict[tuple, Failure] = {}
    lines: dict[str, set[int]] = {}
    start = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        work = Path(place)
        (work / "in").mkdir()
        if target.prepare:
            target.prepare(work)
        while start < inputs:
            died = _in_process(make(target, seed, work, saved, counts), start, inputs)
            state = json.loads((work / "state.json").read_text()) if (work / "state.json").is_file() else {}
            (work / "state.json").unlink(missing_ok=True)
            new = [Failure(**failure) for failure in state.get("failures", ())]
            number, read, refused, failed = counts.get()
            if died:
                new.append(_death(target, died, seed, number - 1, work / "in", saved))
                counts.set(number, read, refused, failed + 1)
            for failure in new:
                if failure.key in found:
                    found[failure.key].count += failure.count
                else:
                    found[failure.key] = failure
            for module, seen in state.get("lines", {}).items():
                lines.setdefault(module, set()).update(seen)
            start = number if died else inputs
    number, report.read, report.refused, failed = counts.get()
    report.inputs, report.failures = report.read + report.refused + failed, list(found.values())
    report.lines = {module: sorted(seen) for module, seen in lines.items()}
    report.seconds = time.monotonic() - began
    return report


def _in_process(worker: Worker, start: int, end: int) -> str:
    pid = os.fork()
    if pid:
        return _wait(pid, worker.counts)
    status = 1
    try:
        worker.run(start, end)
        status = 0
    except BaseException:
        (worker.folder.parent / "died").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _death(target, died, seed, number, folder, saved) -> Failure:
    """The failure of an input that ended the process: what lies in the folder."""
    files = {str(Path(name).relative_to(folder)): Path(name) for name in listing(folder)}
    content = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    clear(folder)
    said = folder.parent / "died"
    detail = said.read_text() if said.is_file() else "the process ended"
    said.unlink(missing_ok=True)
    failure = Failure(target.name, died, detail.strip(), detail.strip().rpartition("File ")[2], seed, number)
    failure.saved = save(content, Verdict(died, detail), target, seed, number, saved)
    return failure
