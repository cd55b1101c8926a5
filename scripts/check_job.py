"""What a job will take, before it starts: `--check` of the main job and of sweeps.

Every data set is looked at. Of each kind of run (a script and its CFG) one is tried out in a temporary folder, on the
largest cell; stage 2 goes on from what the trial of stage 1 has left there. The others count by their pictures.
"""

import contextlib
import io
import os
import tempfile
import time
from dataclasses import dataclass

from dassl.utils.progress import progress
from scripts.commands import COMMANDS, folder
from scripts.jobs import Step
from scripts.run import train_argv

TRIALS, ANCHORS = 25.0, 15.0  # seconds for all trials of training, and for all anchors
SHORTEST = 0.5  # seconds of one
ROW = "{:{}} {:>5} {:>7} {:>13} {:>13}"


@dataclass
class Kind:
    """Runs of one script and CFG. estimate, train, test: of the one that was tried out, and its pictures."""

    name: str
    estimate: object = None
    train: int = 0
    test: int = 0
    runs: int = 0
    seconds: float = 0.0  # of all that are not finished


class Sets:
    """The data sets of a job, each read once for all runs that read the same."""

    def __init__(self, found, count: int):
        self.found, self.seconds = found, ANCHORS / max(1, count)
        self.pictures: dict[tuple, tuple[int, int]] = {}
        self.checked: set[str] = set()

    def size(self, cfg) -> tuple[int, int]:
        """Training and test pictures of a run; the first time, its data set is looked at."""
        from dassl.data.datasets import build_dataset

        data = cfg.DATASET
        key = data.NAME, data.SUBSAMPLE_CLASSES, data.NUM_SHOTS, cfg.TRAINER.MODAL
        if key not in self.pictures:
            with quiet():
                dataset = build_dataset(cfg)
            self.pictures[key] = len(dataset.train_x), len(dataset.test)
            if data.NAME not in self.checked:
                self.checked.add(data.NAME)
                self.check(cfg, dataset)
        return self.pictures[key]

    def check(self, cfg, dataset) -> None:
        """Its pictures, and the zero-shot anchor in its share of the time."""
        import torch

        from dassl.engine.precision import Precision
        from dassl.engine.preflight import anchor, check_data
        from train import check_public

        cuda = torch.cuda.is_available() and cfg.USE_CUDA
        check_data(cfg, dataset, self.found, check_public)
        if not self.found.problems:
            anchor(cfg, dataset, Precision("fp32", "cuda" if cuda else "cpu"), self.found, self.seconds)


def quiet():
    """Context: loggers write to the current standard output, so nothing is seen of them."""
    return contextlib.redirect_stdout(io.StringIO())


def read_step(step: Step, bank: str):
    """A step's config, and what it evaluates, if it trains nothing."""
    import train
    from dassl.engine.preflight import Evaluation

    argv = train_argv(step.command, dict(step.arguments), list(step.pairs))
    if "FEATURES.DIR" not in argv:
        argv += ["FEATURES.DIR", bank]
    args = train.build_parser().parse_intermixed_args(argv)
    cfg = train.read_cfg(args)[0]
    return cfg, Evaluation(args.model_dir, args.load_epoch) if args.eval_only else None


def kind_of(step: Step) -> str:
    """What runs have in common that cost alike, but for their data set."""
    shots = step.arguments.get("SHOTS", "0")
    return " ".join(filter(None, (step.command, step.arguments.get("CFG"), shots != "0" and f"{shots} shots")))


def check_job(plan, args, workers: int) -> int:
    """Look, try out, print; the exit status. plan: makes the cells of `args`, in the folder that OUTPUT names."""
    import torch

    from dassl.engine.preflight import Findings

    started, threads = time.time(), torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))  # as in the job's processes
    finished = {id_of(step) for cell in plan(args) for step in cell if step.finished}
    bank = os.path.join(folder("OUTPUT", "output"), "features")
    before = os.environ.get("OUTPUT")
    with tempfile.TemporaryDirectory(prefix="preflight-") as place:
        os.environ["OUTPUT"] = place
        try:
            job = Job(plan(args), bank, Findings(), finished)
            job.look()
            job.try_out()
        finally:
            os.environ.pop("OUTPUT") if before is None else os.environ.update(OUTPUT=before)
            torch.set_num_threads(threads)
    job.report(workers)
    print(f"checked in {time.time() - started:.0f} s")
    return 1 if job.found.problems else 0


def id_of(step: Step) -> tuple:
    """Equal for a step of two plans, whatever folder they are for."""
    return str(step), kind_of(step), step.arguments.get("SOURCE", "")


class Job:
    """The steps that train.py runs; modules (merges, ensembles) and path cards are counted, not tried out."""

    def __init__(self, cells, bank, found, finished):
        self.bank, self.found, self.finished = bank, found, finished
        self.cells = [[step for step in cell if not COMMANDS[step.command].module] for cell in cells]
        every = [step for cell in cells for step in cell]
        self.others = sum(bool(COMMANDS[step.command].module) + step.card for step in every)
        self.kinds: dict[str, Kind] = {}
        self.pictures: dict[tuple, tuple[int, int]] = {}
        self.encoded: set[tuple] = set()  # whose test features have been counted

    def steps(self):
        return (step for cell in self.cells for step in cell)

    def look(self):
        """Read every data set."""
        sets = Sets(self.found, len({step.arguments["DATASET"] for step in self.steps()}))
        for step in progress(list(self.steps()), "reading data"):
            key = step.arguments["DATASET"], kind_of(step)
            if key not in self.pictures:
                self.pictures[key] = sets.size(read_step(step, self.bank)[0])

    def size(self, step):
        """Training and test pictures."""
        return self.pictures[step.arguments["DATASET"], kind_of(step)]

    def try_out(self):
        """One run of each kind, those of the largest cell first."""
        largest = sorted(self.cells, key=lambda cell: (len(cell), sum(self.size(step)[0] for step in cell)))[::-1]
        seconds = max(SHORTEST, TRIALS / max(1, len({kind_of(step) for step in self.steps()})))
        steps, banks = [step for cell in largest for step in cell], {}
        if steps and not self.found.problems:
            self.try_one(steps[0], 0.0, {})  # what a process pays once
        for step in progress(steps, "trying out"):
            name = kind_of(step)
            if name not in self.kinds and not self.found.problems:
                self.kinds[name] = self.try_one(step, seconds, banks)
        for step in self.steps():
            self.count(step)

    def try_one(self, step, seconds, banks):
        from dassl.engine.trial import trial
        from dassl.utils import UserError

        train, test = self.size(step)
        kind = Kind(kind_of(step), train=train, test=test)
        cfg, evaluation = read_step(step, self.bank)
        try:
            with trial(cfg, folder=str(step.folder), seconds=seconds, known=banks) as made:
                kind.estimate = made.rehearse(evaluation)
                made.leave_results()
        except UserError as error:
            self.found.problem(f"{step}: {error}")
        return kind

    def count(self, step):
        """Add a step to its kind: what grows with the pictures grows by them. A finished one is skipped."""
        kind = self.kinds.get(kind_of(step))
        if kind is None or kind.estimate is None or id_of(step) in self.finished:
            return
        train, test = self.size(step)
        grown = {"steps": train / kind.train, "training features": train / kind.train}
        grown |= {"test": test / kind.test}
        phases = dict(kind.estimate.phases)
        shared = phases.pop("test features", 0.0)
        place = step.arguments["DATASET"], kind.name
        if place not in self.encoded:  # one bank for all seeds
            self.encoded.add(place)
            phases["test"] = phases.get("test", 0.0) + shared
        kind.runs += 1
        kind.seconds += sum(value * grown.get(name, 1.0) for name, value in phases.items())

    def report(self, workers: int) -> None:
        """The table of kinds, and the sums."""
        from dassl.engine.preflight import clock

        kinds = [kind for kind in self.kinds.values() if kind.runs]
        width = max([len(kind.name) for kind in kinds] + [11])
        print(ROW.format("kind of run", width, "runs", "steps", "a run", "all"))
        for kind in kinds:
            each = kind.seconds / kind.runs
            steps = f"{kind.estimate.steps:,}" if kind.estimate.steps else "-"
            print(ROW.format(kind.name, width, kind.runs, steps, clock(each), clock(kind.seconds)))
        runs, seconds = sum(kind.runs for kind in kinds), sum(kind.seconds for kind in kinds)
        peak = max((kind.estimate.peak_mb for kind in kinds), default=0.0)
        print(
            f"estimate: {runs} runs, {clock(seconds)}; about {clock(seconds / workers)} in {workers} processes; "
            f"peak memory {peak:,.0f} MiB a process, {workers * peak:,.0f} MiB in all"
        )
        print(f"{len(self.finished)} are finished; not counted: {self.others} merges, ensembles and path cards")
