"""The process that does a job. It has imported everything once, and forks for each: a start costs milliseconds.

    python -m tests.faults.child

A line of JSON on standard input is a job; the answer is the pid of the fork that does it. `wait PID` is answered by
its status. A job: lines (see `go`), said (named pipe for what it prints), and what may be added: events (file where it
announces phases and steps), hold (list of [kind, word, number]: where it stops itself until SIGCONT), env, full (the
phase from whose first beginning on no file may grow), uid, counts (images a class of a toy task), nan ([epoch, batch]
before which a weight becomes NaN), skips (whether train.py is passed by where it is finished), below (folder whose
files it announces as it opens and changes them), change (the number of the change, from 1, before which it stops
itself).

Nothing of the product is changed: public functions are wrapped by others that say when they begin and end.
"""

import contextlib
import functools
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_job = {}
_open = []  # phases begun and not ended
_seen = Counter()  # announcements so far, by their first two words


def announce(*words):
    """One line of the job's events, written at once: it outlives a SIGKILL. The job stops there if it is to hold."""
    if "events" in _job:
        with contextlib.suppress(OSError):  # no file may grow
            os.write(_job["events"], (" ".join(map(str, words)) + f" {time.monotonic():.6f}\n").encode())
    if words == ("+", _job.get("full")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # the kernel refuses every byte beyond: EFBIG
    _seen[words[:2]] += 1
    if [*words[:2], _seen[words[:2]]] in _job.get("hold", ()):
        hold()


def hold():
    """Stop until SIGCONT."""
    announce("hold")
    os.kill(os.getpid(), signal.SIGSTOP)


def told(owner, name, phase):
    """Make `owner.name` say when it begins and ends; a call inside another of its phase is part of that."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def telling(*args, **kwargs):
        if phase in _open:
            return plain(*args, **kwargs)
        _open.append(phase)
        announce("+", phase)
        try:
            return plain(*args, **kwargs)
        finally:
            announce("-", phase)
            _open.remove(phase)

    setattr(owner, name, telling)


def counted(owner):
    """Make `owner.forward_backward` name its steps: run folder, epoch and batch, from 0."""
    plain = owner.forward_backward

    @functools.wraps(plain)
    def counting(self, *batch):
        if "step" in _open:  # the one of a base class
            return plain(self, *batch)
        announce("step", self.output_dir, self.epoch, self.batch_idx)
        _open.append("step")
        try:
            if [self.epoch, self.batch_idx] == _job.get("nan"):
                spoil(self)
            return plain(self, *batch)
        finally:
            _open.remove("step")

    owner.forward_backward = counting


def watch_files(below, number):
    """Announce what is read and changed below a folder; hold before the change of that number."""
    changes = 0

    def hook(event, args):
        nonlocal changes
        if event not in ("open", *CHANGES) or isinstance(args[0], int):
            return
        path = os.fsdecode(args[0])
        if not path.startswith(below):
            return
        writes = event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        announce("change" if writes else "read", path)
        changes += bool(writes)
        if writes and changes == number:
            hold()

    sys.addaudithook(hook)


def spoil(trainer):
    """One NaN among the weights, as a fault of the memory would leave it."""
    next(p for p in trainer.optimizers()[0].param_groups[0]["params"] if p.requires_grad).data.view(-1)[0] = float(
        "nan"
    )


def listen():
    """Wrap what the phases are made of."""
    import condu.evaluation
    import condu.state
    import dassl.clip.feature_bank
    import mergetune.report
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.base import TrainerBase
    from dassl.engine.resume import ResumeState
    from dassl.engine.trainer import EpochTrainer

    told(EpochTrainer, "run_epoch", "training")
    told(ResumeState, "save", "saving")
    told(ResumeState, "save_within", "saving")
    told(TrainerBase, "save_model", "saving")
    told(condu.state.ExpertStore, "save", "saving")
    told(dassl.clip.feature_bank.FeatureBank, "fill", "bank")
    told(condu.state.Stream, "add", "fusing")
    told(condu.state.Stream, "save", "fusing")
    told(condu.evaluation.Evaluator, "sweep", "evaluating")
    told(mergetune.report, "report", "reporting")
    classes = {base for name in TRAINER_REGISTRY.registered_names() for base in TRAINER_REGISTRY.get(name).__mro__}
    for owner in classes:
        if "test" in vars(owner) and issubclass(owner, TrainerBase):
            told(owner, "test", "evaluating")
        if "forward_backward" in vars(owner) and issubclass(owner, EpochTrainer):
            counted(owner)


def go(line):
    """One command line: ["train.py", ...], or ["-m", module, ...]. Of train.py a finished run is passed by, as the
    scripts do."""
    from dassl.utils import errors_in_one_line

    program, *argv = line
    if program == "-m":
        sys.argv = [argv[0], *argv[1:]]
        module = sys.modules.get(argv[0])
        if module is not None:  # with its functions wrapped
            with errors_in_one_line():
                module.main(argv[1:])
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        return
    out = Path(argv[argv.index("--output-dir") + 1])
    if _job.get("skips", True) and (out / "results.json").is_file():
        print(f"{out} is finished: skipped")
        return
    sys.argv = line
    runpy.run_path(str(ROOT / program), run_name="__main__")


def work(job):
    """The fork's life: do the job -> exit status."""
    said = os.open(job["said"], os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job.get("env", {}))
    _job.update(job)
    if "events" in job:
        _job["events"] = os.open(job["events"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if "counts" in job:
        from datasets.toy_world import MtilToy

        MtilToy.counts = tuple(job["counts"])
    if "uid" in job:
        os.setgroups([])
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    if "below" in job:
        watch_files(job["below"], job.get("change", 0))
    try:
        for line in job["lines"]:
            go(line)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve():
    """Answer until standard input ends."""
    answers = os.dup(1)
    for text in iter(sys.stdin.readline, ""):
        if text.startswith("wait "):
            status = os.waitstatus_to_exitcode(os.waitpid(int(text.split()[1]), 0)[1])
            os.write(answers, f"{status}\n".encode())
            continue
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            status = 70
            try:
                status = work(json.loads(text))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.write(answers, f"{pid}\n".encode())


def main():
    """Import, wrap, serve."""
    os.chdir(ROOT)
    import torch
    import torch.utils.tensorboard

    import datasets
    import mergetune.ensemble
    import mergetune.import_checkpoint
    import mergetune.merge
    import mergetune.path_card
    import mergetune.predict  # noqa: F401
    import train  # noqa: F401  all of it once, not once a job
    from dassl.clip.build import cached_clip
    from dassl.utils import collect_env_info
    from datasets.toy.world import WORLD

    datasets.register_all()
    torch.set_num_threads(1)
    collect_env_info()  # it asks a dozen programs
    cached_clip("tiny")
    for toy in WORLD.values():
        toy.image(toy.classnames[0], "test", 0)  # imports what an ordinary user may not read
    "".encode("utf-8-sig")  # and so does this
    listen()
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        sys.exit(f"{len(threads)} threads: this process cannot fork")
    print("ready", flush=True)
    serve()


if __name__ == "__main__":
    main()
