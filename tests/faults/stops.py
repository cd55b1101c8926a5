"""Processes that are told to stop, meet each other, lose a helper, or compute with a NaN."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import torch

from tests.faults.bench import one_error, quiet
from tests.faults.traces import differences, left_over, place, unreadable
from tests.fixtures.interpreter import Python, group

TERM, INT = (signal.SIGTERM, 143), (signal.SIGINT, 130)
SWEEP = """
command: coop_LMC/base2new_train_coop
cfg: paper
datasets: {toy: [toy_shapes]}
seeds: [1]
grid: {TRAINER.LMC.TAU: [0.5, 0.7]}
"""
WORKER = ("DATALOADER.NUM_WORKERS", "1", "FEATURES.VIEWS", "0")


def sigterm(bench):
    """SIGTERM in a step of the second epoch, or round: it ends and is saved, exit status 143; none is taken twice."""
    jobs = bench.world.jobs()
    for job, number in {"stage 1": 5, "stage 2": 5, "stream": 4}.items():  # epochs of 3 steps, rounds of 2
        if job not in jobs:
            continue
        whole = bench.whole(job, *jobs[job])
        runs = {"stage 1": [Path("coop")], "stage 2": [Path("lmc")]}.get(job)
        runs = runs or sorted(path.relative_to(whole) for path in whole.rglob("sessions/*"))
        running = bench.start(*jobs[job], hold=[["step", str(bench.out / runs[-1]), number]])
        assert running.held(), running.text()
        again = _told(bench, running, bench.out / runs[-1], whole, jobs[job], *TERM)
        taken = running.steps() + again.steps()
        assert set(taken.values()) == {1}, f"{job}: {taken}"
    return "goes on to the same bits, and no step is taken twice"


def sigint(bench):
    """Ctrl-C in the second epoch, which is begun anew: exit status 130."""
    lines = [bench.world.train("coop")]
    whole = bench.whole("coop", *lines)
    running = bench.start(*lines, hold=[["+", "training", 2]])
    assert running.held(), running.text()
    again = _told(bench, running, bench.out / "coop", whole, lines, *INT)
    assert again.steps() == {(str(bench.out / "coop"), epoch, batch): 1 for epoch in (1, 2) for batch in range(3)}
    return "goes on to the same bits"


def _told(bench, running, folder, whole, lines, signum, status):
    """Send the signal: resume.pt is named, and the same lines go on -> their Running."""
    running.kill(signum)
    found = running.end()
    assert found == status, f"exit status {found}, expected {status}\n{running.text()}"
    quiet(running)
    assert f"Interrupted (last good checkpoint: {folder / 'resume.pt'}); the same command" in running.text()
    torch.load(folder / "resume.pt", weights_only=True)
    return bench.goes_on(whole, *lines)


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
        first = bench.start(*lines, hold=[["+", phase, 2]])
        assert first.held(), first.text()
        said.append(one_error(bench.run(*lines, status=1), "in use by a running process", f"pid {first.pid}"))
        first.kill(signal.SIGCONT)
        assert first.end() == 0, first.text()
        bench.goes_on(whole, *lines)
    return said[0]


def worker_killed(bench):
    """A DataLoader's worker is killed by the system: one line, no hang, and the next run goes on."""
    lines = [bench.world.train("workers", *WORKER)]
    whole = bench.whole("workers", *lines)
    running = bench.start(*lines, hold=[["step", str(bench.out / "workers"), 4]])
    assert running.held(), running.text()
    workers = _children(running.pid)
    assert workers, "no worker is there"
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    running.kill(signal.SIGCONT)
    assert running.end() == 1, running.text()
    resume = bench.out / "workers" / "resume.pt"
    said = one_error(running, "A worker that loads images is gone", "NUM_WORKERS", f"checkpoint: {resume}")
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
        pair = _pair(bench, lines, {lost: [["+", "training", 2]]})
        assert pair[lost].held(), pair[lost].text()
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


def _pair(bench, lines, holds=None):
    """Two processes that make one run, as torchrun would start them. holds: {rank: where it is to hold}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    holds = holds or {}
    return [bench.start(*lines, env=env | {"RANK": str(rank)}, hold=holds.get(rank, [])) for rank in (0, 1)]


def main_job(bench):
    """Of one cell, all of its pairs' runs."""
    return _ends(bench, "main job", "scripts/main_job.py")


def sweep(bench):
    """Of two values: zero-shot CLIP, stage 1, and stage 2 at each."""
    file = bench.world.folder / "small.yaml"
    file.write_text(SWEEP, encoding="utf-8")
    return _ends(bench, "sweep", "scripts/sweep.py", str(file))


def workflow(bench):
    """The main job's cell as a job of the workflow."""
    return _ends(bench, "workflow", "scripts/flow.py")


def _ends(bench, name, *words):
    """A job ended once so many runs are finished, its leader alone or the whole group: none of its processes is left
    half a minute later, what it says is no traceback, and the same line reaches the same end."""
    env = {"DATA": str(bench.world.data), "OUTPUT": str(bench.out)}
    line = [*words, "toy_shapes", "1", "--set", "OPTIM.MAX_EPOCH", "1", "FEATURES.VIEWS", "1"]
    line += ["TEST.OTHERS", "[toy_digits]"]
    bench.clear()
    _job_end(Python(line, **env), 0)
    whole = bench.world.folder / "whole" / name
    place(bench.out, whole)
    tried = [(signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGTERM, True), (signal.SIGTERM, False),
             (signal.SIGINT, False)]  # fmt: skip
    for number, (signum, alone) in enumerate(tried, start=1):
        bench.clear()
        ours = _with_output(bench.out)
        job = Python(line, session=True, **env)
        while len(list(bench.out.rglob("results.json"))) < number and job.returncode is None:
            time.sleep(0.05)
        (os.kill if alone else os.killpg)(job.pid, signum)
        said = _job_end(job, -signum if signum == signal.SIGKILL else 128 + signum)
        what = f"{signum.name} to {'the leader' if alone else 'the group'}"
        deadline = time.monotonic() + 30
        while (left := {*group(job.pid), *_with_output(bench.out)} - ours) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"{what}: {len(left)} processes are left"
        assert signum == signal.SIGKILL or "the same command goes on" in said, f"{what}: {said}"
        problems = unreadable(bench.out)
        _job_end(Python(line, **env), 0)
        for table in (table for folder in (whole, bench.out) for table in folder.glob("tables/sweep.*")):
            table.unlink()  # of seconds too
        problems += left_over(bench.out) + unreadable(bench.out) + differences(whole, bench.out)
        assert not problems, "\n".join([what, *problems])
    return f"{len(tried)} ends, none lost"


def _with_output(folder):
    """Numbers of the processes that have this OUTPUT."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found |= {int(path.parent.name)} if f"OUTPUT={folder}\0".encode() in path.read_bytes() else set()
    return found


def _job_end(process, status):
    """Wait for a job -> what it said on stderr."""
    said = process.communicate()[1]
    assert process.returncode == status, f"exit status {process.returncode}, expected {status}\n{said}"
    assert "Traceback" not in said, said
    return said
