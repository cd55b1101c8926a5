"""Processes that are told to stop, meet each other, lose a helper, or compute with a NaN."""

import os
import signal
import socket
from pathlib import Path

import torch

from tests.faults.bench import one_error, quiet
from tests.faults.traces import differences, left_over, place, unreadable

TERM, INT = (signal.SIGTERM, 143), (signal.SIGINT, 130)
WORKER = ("DATALOADER.NUM_WORKERS", "1", "FEATURES.VIEWS", "0")


def sigterm(bench):
    """SIGTERM in the second epoch: resume.pt is left and named, exit status 143."""
    return _told_to_stop(bench, *TERM)


def sigint(bench):
    """Ctrl-C, the same with 130."""
    return _told_to_stop(bench, *INT)


def _told_to_stop(bench, signum, status):
    lines = [bench.world.train("coop")]
    whole = bench.whole("coop", *lines)
    running = bench.stopped("coop", lines, "training", 2, signum, status)
    quiet(running)
    resume = bench.out / "coop" / "resume.pt"
    assert f"Interrupted (last good checkpoint: {resume}); the same command goes on" in running.text(), running.text()
    assert torch.load(resume, weights_only=True)["epoch"] == 1
    assert bench.goes_on(whole, *lines).steps() == _steps(bench.out / "coop", range(1, 3))
    return "goes on to the same bits"


def _steps(folder, epochs):
    return {(str(folder), epoch, batch): 1 for epoch in epochs for batch in range(3)}


def signals_in_phases(bench):
    """SIGTERM in each other phase: the process ends at once, nothing half is left, and the next goes on."""
    jobs = bench.world.jobs()
    places = [("stage 1", "bank", 1), ("stage 1", "saving", 2), ("stage 1", "evaluating", 4), ("stream", "saving", 2),
              ("stream", "fusing", 2), ("report", "reporting", 1)]  # fmt: skip
    for job, phase, number in places:
        status = -TERM[0] if phase == "reporting" else TERM[1]  # a report has no log to close
        lines = jobs[job]
        whole = bench.whole(job, *lines)
        running = bench.stopped(job, lines, phase, number, TERM[0], status)
        quiet(running)
        assert not [line for line in left_over(bench.out) if ".tmp" in line], left_over(bench.out)
        bench.goes_on(whole, *lines)
    return ", ".join(f"{phase} of {job}" for job, phase, _ in places)


def two_processes(bench):
    """A second process on a run folder, and on a stream, is refused in one line; the first is not disturbed."""
    said = []
    for name, lines, phase in (("coop", [bench.world.train("coop")], "training"),
                               ("stream", [bench.world.stream()], "training")):  # fmt: skip
        whole = bench.whole(f"{name} alone", *lines)
        first = bench.start(*lines)
        assert first.wait_for("+", phase, 2), first.text()
        first.kill(signal.SIGSTOP)
        said.append(one_error(bench.run(*lines, status=1), "in use by a running process", f"pid {first.pid}"))
        first.kill(signal.SIGCONT)
        assert first.end() == 0, first.text()
        bench.goes_on(whole, *lines)
    return said[0]


def worker_killed(bench):
    """A DataLoader's worker is killed by the system: one line, no hang, and the next run goes on."""
    lines = [bench.world.train("workers", *WORKER)]
    whole = bench.whole("workers", *lines)
    running = bench.start(*lines)
    assert running.wait_for("step", str(bench.out / "workers"), 4), running.text()
    workers = _children(running.pid)
    assert workers, "no worker is there"
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert running.end() == 1, running.text()
    resume = bench.out / "workers" / "resume.pt"
    said = one_error(running, "A worker that loads pictures is gone", "NUM_WORKERS 1", f"checkpoint: {resume}")
    assert torch.load(resume, weights_only=True)["epoch"] == 1
    bench.goes_on(whole, *lines)
    return said


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def nan(bench):
    """A weight becomes NaN in the middle: the step and the last good checkpoint are named, and the next run goes on."""
    lines = [bench.world.train("coop")]
    whole = bench.whole("coop", *lines)
    running = bench.run(*lines, status=1, nan=[1, 1])
    resume = bench.out / "coop" / "resume.pt"
    said = one_error(running, "infinite or NaN", "epoch 2, batch 2", f"last good checkpoint: {resume}")
    assert not unreadable(bench.out) and not (bench.out / "coop" / "results.json").exists()
    bench.goes_on(whole, *lines)
    bench.clear()
    one_error(bench.run(bench.world.train("coop", "OPTIM.LR", "1e30"), status=1), "infinite or NaN", "(epoch ")
    return said


def one_of_two(bench):
    """One of the two processes of a run is killed: the other ends, with one line at most, and both go on afterwards."""
    lines, said = [bench.world.train("pair", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")], []
    bench.clear()
    pair = _pair(bench, lines)
    assert [process.end() for process in pair] == [0, 0], [process.text() for process in pair]
    whole = bench.world.folder / "whole" / "pair"
    place(bench.out, whole)
    for lost in (1, 0):
        bench.clear()
        pair = _pair(bench, lines)
        assert pair[lost].wait_for("+", "training", 2), pair[lost].text()
        pair[lost].kill()
        assert pair[lost].end() == -signal.SIGKILL
        other = pair[1 - lost]
        assert other.end() == 1, other.text()
        assert "Traceback" not in other.text() and len(other.errors()) <= 1, other.text()
        said += other.errors()
        pair = _pair(bench, lines)
        assert [process.end() for process in pair] == [0, 0], [process.text() for process in pair]
        assert not differences(whole, bench.out), differences(whole, bench.out)
    return "; ".join(said)


def _pair(bench, lines):
    """Two processes that make one run, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [bench.start(*lines, env=env | {"RANK": str(rank)}) for rank in (0, 1)]
