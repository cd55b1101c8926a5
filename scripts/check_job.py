"""What a job will take: by those of its runs that are finished, and by one of each data set that `--check` tries."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import train
from dassl import engine
from dassl.utils import UserError, read_json
from scripts.jobs import Job, compare


def check_job(jobs: Sequence[Job], args) -> int:
    """`train.py --check` of a run of each data set, then the sums; the exit status."""
    problem, stale = compare(jobs)
    problems, tried = [problem] * bool(problem and not args.overwrite), []
    for job in first_jobs(jobs):
        print(job, flush=True)
        try:
            tried.append((job, train.main([*job.argv, "--check"])["seconds"]))
        except UserError as error:
            problems.append(f"{job}: {error}")
    again = {job.folder for job in stale if args.overwrite}
    done = [job for job in jobs if job.finished and job.folder not in again]
    print(f"{len(done)} of {len(jobs)} runs are finished")
    print(*estimate(jobs, done, args.workers, tried), *(f"PROBLEM: {line}" for line in problems), sep="\n")
    return int(bool(problems))


def first_jobs(jobs: Sequence[Job]) -> Iterator[Job]:
    """Of each data set a run of train.py that can begin now: of those to do before those that are finished, one that
    trains before one that evaluates."""
    ready = defaultdict(list)
    for job in jobs:
        command = job.declared
        if not command.module and all(engine.checkpoint.finished(run) for run, _ in job.needs.values()):
            ready[job.subject].append((job.finished, command.eval_only or bool(command.evaluates), job))
    for rows in ready.values():
        yield min(rows, key=lambda row: row[:2])[-1]


def estimate(jobs: Sequence[Job], done: Sequence[Job], workers: int, tried: Sequence[tuple] = ()) -> Iterator[str]:
    """Lines on the time of what is left, by what finished runs of a script and CFG took. tried: (job, seconds) of
    others."""
    seconds = defaultdict(list)
    for job, wall in [*((job, wall_s(job)) for job in done), *tried]:
        if wall is not None:
            seconds[kind_of(job)].append(wall)
    left = Counter(map(kind_of, jobs)) - Counter(map(kind_of, done))
    known = sum(count * sum(seconds[kind]) / len(seconds[kind]) for kind, count in left.items() if kind in seconds)
    if known:
        clock = engine.dry_run.clock
        yield f"estimate: {clock(known)}; about {clock(known / workers)} in {workers} at once"
    if unknown := sum(count for kind, count in left.items() if kind not in seconds):
        yield f"{unknown} runs are of kinds of which none is finished{' or was tried' if tried else ''}: not counted"


def kind_of(job: Job) -> str:
    """What runs have in common that cost alike, but for their data set."""
    shots = job.arguments.get("SHOTS", "0")
    return " ".join(filter(None, (job.command, job.arguments.get("CFG"), shots != "0" and f"{shots} shots")))


def wall_s(job: Job) -> float | None:
    """What a finished run took, as its results say. A stream: all sessions; one pass evaluates all of them."""
    walls = [read_json(mark).get("wall_s") for mark in job.marks]
    return None if None in walls else (max if job.declared.follows else sum)(walls)
