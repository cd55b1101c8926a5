"""Jobs in processes of their own, forked from one that has imported everything (tests/faults/child.py)."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds until a process counts as hanging


class Hangs(AssertionError):
    """A process did not end."""


@dataclass
class Event:
    """What a job announced. kind: + or - of a phase, or step; words: what follows; at: seconds."""

    kind: str
    words: list[str]
    at: float


def _read(pipe):
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


class Running:
    """A job under way. Attributes: pid; status, its exit status once `end` has returned."""

    def __init__(self, warm, pid, said, events):
        self.warm, self.pid, self._events = warm, pid, Path(events)
        self.status, self._said, self._text = None, said, b""

    def events(self):
        """What it has announced so far -> list of Event."""
        lines = self._events.read_text().splitlines(keepends=True) if self._events.is_file() else []
        parts = [line.split() for line in lines if line.endswith("\n")]
        return [Event(words[0], words[1:-1], float(words[-1])) for words in parts]

    def alive(self):
        """Has it not ended yet? A zombie has."""
        return self._state() not in "ZX"

    def _state(self):
        """The system's letter for what it does: T stopped, Z ended."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (OSError, ProcessLookupError):
            return "X"
        return stat.rpartition(")")[2].split()[0]

    def held(self, times=1):
        """Return once it has stopped itself that often where it was to hold, or ended -> whether it has stopped."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if (state := self._state()) in "ZX":
                return False
            if state == "T" and sum(event.kind == "hold" for event in self.events()) >= times:
                return True
            time.sleep(0.001)
        raise Hangs(f"not held within {PATIENCE} s\n{self.text()}")

    def kill(self, signum=signal.SIGKILL):
        """Send a signal, unless it has ended; where it holds it goes on with that."""
        if self.alive():
            os.kill(self.pid, signum)
            if signum != signal.SIGSTOP:
                os.kill(self.pid, signal.SIGCONT)

    def phase(self):
        """The innermost phase that it has begun and not ended, "" between phases."""
        begun = []
        for event in self.events():
            if event.kind == "+":
                begun.append(event.words[0])
            elif event.kind == "-":
                begun.remove(event.words[0])
        return begun[-1] if begun else ""

    def steps(self):
        """How often each training step was taken: {(run folder, epoch, batch): times}."""
        steps = [event.words for event in self.events() if event.kind == "step"]
        return Counter((folder, int(epoch), int(batch)) for folder, epoch, batch in steps)

    def text(self):
        """All that it has printed."""
        while self._said is not None and (part := _read(self._said)):
            self._text += part
        return self._text.decode(errors="replace")

    def errors(self):
        """Its lines that begin with error:"""
        return [line for line in self.text().splitlines() if line.startswith("error: ")]

    def end(self, patience=PATIENCE):
        """Wait for its end -> exit status, -9 for SIGKILL. Raises Hangs."""
        deadline = time.monotonic() + patience
        while self.alive():
            self.text()
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise Hangs(f"still running after {patience} s\n{self.text()}")
            time.sleep(0.002)
        if self.status is None:
            self.status = self.warm.status_of(self.pid)
            self.text()
            os.close(self._said)
            self._said = None
        return self.status


class Warm:
    """Context manager of the forking process. folder: where jobs announce things."""

    def __init__(self, folder, **environment):
        self.folder, self._count, self._environment = Path(folder), 0, environment
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        path = os.pathsep.join([str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")])
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env |= self._environment
        line = [sys.executable, "-m", "tests.faults.child"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(line, cwd=ROOT, env=env, **pipes)
        assert self._process.stdout.readline() == "ready\n", "the forking process did not start"
        return self

    def __exit__(self, *exc_info):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, *lines, **more):
        """Fork for a job -> Running. lines: command lines, each a list; more: see tests/faults/child.py."""
        self._count += 1
        said, events = (self.folder / f"{self._count}.{kind}" for kind in ("said", "events"))
        lines = [[str(word) for word in line] for line in lines]
        job = {"lines": lines, "said": str(said), "events": str(events), **more}
        for file in (said, events):
            file.unlink(missing_ok=True)
        os.mkfifo(said)  # not a file, which could be full
        reading = os.open(said, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 1 << 20)
        events.touch()
        for file in (said, events):
            file.chmod(0o666)  # for a job under another uid
        return Running(self, int(self._ask(json.dumps(job))), reading, events)

    def run(self, *lines, **more):
        """`start`, and wait for the end -> Running."""
        running = self.start(*lines, **more)
        running.end()
        return running

    def status_of(self, pid):
        """The exit status of a job that has ended; once a job."""
        return int(self._ask(f"wait {pid}"))

    def _ask(self, text):
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()
