"""Disks that are full or cannot be written to, and clocks that go wrong."""

import contextlib
import json
import os
import signal
import subprocess
import time

from tests.faults.bench import Bench, one_error
from tests.faults.traces import RESULTS, differences, finished, place, stamps, unreadable
from tests.faults.warm import Warm
from tests.faults.world import World
from tests.fixtures.image_folders import write_image

NOBODY = 65534
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
FULL = {"bank": "stage 1", "saving": "stage 1", "training": "stage 1", "evaluating": "stage 1", "fusing": "stream",
        "reporting": "report"}  # fmt: skip


def no_file_may_grow(bench, phases=tuple(FULL)):
    """RLIMIT_FSIZE from the beginning of a phase on: one line that names the file; with room again it goes on."""
    said = []
    for phase in phases:
        lines = bench.world.jobs()[FULL[phase]]
        whole = bench.whole(FULL[phase], *lines)
        running = bench.run(*lines, status=1, full=phase)
        said.append(f"{phase}: {one_error(running, 'Cannot write', 'File too large', bench.out)}")
        assert not list(bench.out.rglob("*.tmp")), list(bench.out.rglob("*.tmp"))
        bench.goes_on(whole, *lines)
    return said[0]


def full_file_system(bench):
    """A tmpfs that is too small: ENOSPC; once it is larger the run goes on."""
    lines, said = [bench.world.train("coop", "OPTIM.MAX_EPOCH", "6", "TRAIN.CHECKPOINT_FREQ", "1")], []
    whole = bench.whole("coop6", *lines)
    needed = int(subprocess.run(["du", "-sk", whole], capture_output=True, text=True).stdout.split()[0])
    for share in (0.3, 0.5, 0.7, 0.9):
        with _mounted(bench.out, "-t", "tmpfs", "-o", f"size={int(share * needed)}k", "tmpfs"):
            running = bench.run(*lines, status=1)
            said.append(one_error(running, "Cannot write", "No space left on device"))
            _mount("-o", "remount,size=64m", bench.out)
            bench.goes_on(whole, *lines)
    return said[-1]


@contextlib.contextmanager
def _mounted(where, *words):
    _mount(*words, where)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def read_only_data(bench):
    """A data root that may only be read, by an ordinary user and on a read-only file system: nothing is missed."""
    world = World(bench.world.folder / "read-only")
    place(world.data, world.folder / "fresh")
    own, lines = Bench(world, bench.warm), world.jobs()["stream"]
    whole = own.whole("stream", *lines)  # draws the toy images too
    for folder in (world.folder / "fresh").iterdir():
        place(folder, world.data / folder.name)  # without what that run has left
    before, modes = stamps(world.data), []
    if os.geteuid() == 0:
        own.clear()
        with _mounted(world.data, "--bind", world.data):
            _mount("-o", "remount,ro,bind", world.data)
            own.goes_on(whole, *lines)
        modes.append("a read-only mount")
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(world.data)], check=True)
    own.clear()
    world.out.chmod(0o777)
    world.folder.chmod(0o755)
    own.run(*lines, **({"uid": NOBODY} if os.geteuid() == 0 else {}))
    problems = differences(whole, own.out)
    assert not problems, "\n".join(problems)
    assert stamps(world.data) == before
    return ", ".join([*modes, "no permission"])


def clock_set_back(bench):
    """Files from the future, as after a clock set back: what is finished is not repeated, what is stale not taken."""
    job, number = ("stage 1", 2) if bench.world.small else ("stage 2 tests", 5)
    lines = bench.world.jobs()[job]
    whole = bench.whole(job, *lines)
    bench.stopped(job, lines, "training", number, signal.SIGKILL, -signal.SIGKILL)
    ahead = time.time() + 2 * 86400
    for path in stamps(bench.out):
        os.utime(path, (ahead, ahead))
    before = finished(bench.out)
    bench.goes_on(whole, *lines)
    now = stamps(bench.out)
    repeated = [path for path, stamp in before.items() if now.get(path) != stamp]
    assert before and not repeated, repeated
    return "nothing repeated; " + _stale(bench)


def _stale(bench):
    """An image replaced by one with an older time: features are encoded again."""
    world = World(bench.world.folder / "replaced")
    lines = [world.train("coop")]
    bench.warm.run(*lines)
    image = next(world.data.rglob("*.png"))
    write_image(image, seed=99)
    os.utime(image, (1e9, 1e9))
    again = bench.warm.run(world.train("other"))
    assert again.status == 0, again.text()
    assert [event for event in again.events() if event.words[0] == "bank"], "old features of a new image"
    return "a replaced image is encoded again"


def clock_runs_backwards(bench):
    """libfaketime: the clock goes back by a day in the middle of a run, and by another before the next one."""
    lines = bench.world.jobs()["stage 2 tests"]
    whole = bench.whole("stage 2 tests", *lines)
    clock = bench.world.folder / "clock"
    clock.write_text("+0d\n")
    env = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    with Warm(bench.world.folder / "faketime", **env, DONT_FAKE_MONOTONIC="1") as warm:
        running = warm.start(*lines, hold=[["+", "training", 2], ["+", "training", 5]])
        assert running.held(), running.text()
        clock.write_text("-1d\n")
        running.kill(signal.SIGCONT)
        assert running.held(times=2), running.text()
        running.kill()
        running.end()
        clock.write_text("-2d\n")
        again = warm.run(*lines)
    assert again.status == 0, again.text()
    problems = unreadable(bench.out) + differences(whole, bench.out)
    assert not problems, "\n".join(problems)
    seconds = {path.parent.name: json.loads(path.read_text())["wall_s"] for path in bench.out.rglob(RESULTS)}
    assert all(0 <= value < 300 for value in seconds.values()), f"seconds of runs: {seconds}"
    return f"{seconds}"
