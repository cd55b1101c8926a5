"""What a job will take, before it starts: `--check` of the main job and of sweeps.

Every data set is looked at. Of each kind of run (a script and its CFG) one is tried out in a temporary folder, on the
largest cell; stage 2 goes on from what that of stage 1 has left there. The others count by their images.
"""

import os
import tempfile
import time
from collections import Counter

from dassl.utils.progress import progress
from scripts.commands import COMMANDS, folder
from scripts.jobs import Job, compare, train_argv

ANCHORS = 15.0  # seconds for all of them
ROW = "{:{}} {:>5} {:>7} {:>13} {:>13}"


def kind_of(step: Job) -> str:
    """What runs have in common that cost alike, but for their data set."""
    shots = step.arguments.get("SHOTS", "0")
    return " ".join(filter(None, (step.command, step.arguments.get("CFG"), shots != "0" and f"{shots} shots")))


def check_job(plan, args, workers: int) -> int:
    """Look, try out, print; the exit status. plan: makes the cells of `args`, in the folder that OUTPUT names.

    The steps that train.py runs are tried out; modules (merges, ensembles) and path cards are counted.
    """
    import torch

    from dassl.engine.dry_run import Findings
    from dassl.engine.signals import sigterm_ends

    started, threads, findings = time.time(), torch.get_num_threads(), Findings()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))  # as in the job's processes
    every = [step for cell in plan(args) for step in cell]
    problem, stale = compare(every)
    stale = {step.folder for step in stale if args.overwrite}
    finished = [step.finished and step.folder not in stale for step in every]
    left = [step for step, done in zip(every, finished, strict=True) if not (done or COMMANDS[step.command].module)]
    bank, before = os.path.join(folder("OUTPUT", "output"), "features"), os.environ.get("OUTPUT")
    with sigterm_ends(), tempfile.TemporaryDirectory(prefix="preflight-") as place:
        os.environ["OUTPUT"] = place
        try:
            cells = [[step for step in cell if not COMMANDS[step.command].module] for cell in plan(args)]
            sizes = look([step for cell in cells for step in cell], bank, findings)
            cells.sort(key=lambda cell: -sum(sizes[step.arguments["DATASET"]] for step in cell))
            kinds = {} if findings.problems else try_out([step for cell in cells for step in cell], bank, findings)
        finally:
            os.environ.pop("OUTPUT") if before is None else os.environ.update(OUTPUT=before)
            torch.set_num_threads(threads)
    report(left, kinds, sizes, workers)
    if problem and not args.overwrite:
        findings.problem(problem)
    others = sum(bool(COMMANDS[step.command].module) + step.card for step in every)
    print(f"{sum(finished)} are finished; not counted: {others} merges, ensembles and path cards")
    print(f"checked in {time.time() - started:.0f} s")
    return 1 if findings.problems else 0


def look(steps: list[Job], bank: str, findings) -> dict[str, int]:
    """{data set: its images}; each is checked, with its zero-shot anchor."""
    import torch

    from dassl.data.datasets import build_dataset
    from dassl.engine.dry_run import check_data
    from dassl.engine.precision import Precision
    from dassl.utils.logger import quiet
    from datasets.tools.check import check_public

    sets, sizes = {step.arguments["DATASET"]: step for step in reversed(steps)}, {}
    for name, step in progress(list(sets.items())[::-1], "reading data"):
        cfg = read_step(step, bank)[0]
        with quiet():
            dataset = build_dataset(cfg)
        sizes[name] = len(dataset.train_x) + len(dataset.test)
        precision = Precision("fp32", "cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        check_data(cfg, dataset, precision, findings, check_public, seconds=ANCHORS / len(sets))
    return sizes


def read_step(step: Job, bank: str):
    """A step's config, and (model folder, epoch) of what it evaluates, if it trains nothing."""
    import train

    argv = train_argv(step.command, dict(step.arguments), list(step.pairs))
    if "FEATURES.DIR" not in argv:
        argv += ["FEATURES.DIR", bank]
    args = train.build_parser().parse_intermixed_args(argv)
    return train.read_cfg(args)[0], (args.model_dir, args.load_epoch) if args.eval_only else None


def try_out(steps: list[Job], bank: str, findings) -> dict[str, tuple]:
    """{kind: (data set, DryRun) of its first step}."""
    from torch import OutOfMemoryError

    from dassl.engine.dry_run import begun
    from dassl.engine.results import write_results
    from dassl.utils import UserError
    from dassl.utils.logger import quiet

    kinds, known = {}, set()
    for step in progress(list({kind_of(step): step for step in reversed(steps)}.values())[::-1], "trying out"):
        cfg, evaluates = read_step(step, bank)
        try:
            with begun(cfg, str(step.folder), known) as run:
                run.time(evaluates, findings.values.get("image_s", 0.0))
                with quiet():  # what a run that continues it looks for
                    run.trainer.save_model(run.trainer.max_epoch - 1, run.trainer.output_dir)
                    write_results(run.trainer.output_dir, run.trainer, run.cfg, wall_s=0.0, command="")
        except (UserError, OutOfMemoryError) as error:
            findings.problem(f"{step}: {str(error).splitlines()[0]}")
            break
        run.trainer = None  # its memory
        kinds[kind_of(step)] = step.arguments["DATASET"], run
    return kinds


def report(steps: list[Job], kinds: dict[str, tuple], sizes: dict[str, int], workers: int) -> None:
    """The table of kinds, and the sums. All but the start grows with the images."""
    from dassl.engine.dry_run import clock, others_line

    runs, seconds, others, names = Counter(), Counter(), 0.0, {}
    for step in (step for step in steps if kind_of(step) in kinds):
        kind = kind_of(step)
        tried, run = kinds[kind]
        fixed = run.phases["start"] + run.phases["others"]
        seconds[kind] += fixed + (run.phases.total() - fixed) * sizes[step.arguments["DATASET"]] / sizes[tried]
        runs[kind] += 1
        others += run.phases["others"]
        names |= run.others
    width = max([*map(len, runs), 11])
    print(ROW.format("kind of run", width, "runs", "steps", "a run", "all"))
    for kind, count in runs.items():
        number = f"{kinds[kind][1].steps:,}" if kinds[kind][1].steps else "-"
        print(ROW.format(kind, width, count, number, clock(seconds[kind] / count), clock(seconds[kind])))
    if names:
        print(others_line(names, others))
    peak, total = max((kinds[kind][1].peak_mb for kind in runs), default=0.0), seconds.total()
    print(
        f"estimate: {runs.total()} runs, {clock(total)}; about {clock(total / workers)} in {workers} processes; "
        f"peak memory {peak:,.0f} MiB a process, {workers * peak:,.0f} MiB in all"
    )
