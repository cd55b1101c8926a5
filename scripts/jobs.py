"""A job is one run of a command: what it is given and needs, whether it is finished, and as what is asked for."""

import contextlib
import importlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.commands import COMMANDS, folder, run_folder, stage1_command
from scripts.commands.command import OTHERS_KEY, ROOT, Arguments, first_arguments, of_source, of_stage1, others

STREAM = "trained stream"
CARD = "path.json"
FIELDS = {"results.json": "metrics", "sweep.json": "test", CARD: "barrier"}  # what a whole one has


@dataclass(frozen=True)
class Job:
    """One run of a command. card: draw its path afterwards."""

    command: str
    arguments: Mapping[str, str]
    pairs: tuple[str, ...] = ()
    card: bool = False

    @property
    def folder(self):
        return run_folder(COMMANDS[self.command], dict(self.arguments))

    @property
    def marks(self):
        """The files that a finished run has left."""
        return COMMANDS[self.command].marks(dict(self.arguments))

    @property
    def done(self) -> bool:
        """Has its run left results that can be read?"""
        from dassl.engine.checkpoint import finished
        from dassl.engine.others import lacks

        results = [mark.is_file() and finished(mark.parent, mark.name, FIELDS[mark.name]) for mark in self.marks]
        return bool(results) and all(results) and (self.card or not lacks(results[-1], self.others))

    @property
    def others(self) -> list[str]:
        """The names that TEST.OTHERS has for it or for its card; none where neither is about new classes."""
        from dassl.config import KEYS
        from dassl.engine.config import extra_opts
        from dassl.engine.others import names_of
        from dassl.utils import split_pairs

        command = COMMANDS[self.command]
        if not (command.scores_new or self.card):
            return []
        on_card = "auto" if self.card and self.subject.startswith("toy_") else ""
        usual = others(command, dict(self.arguments)) or on_card
        words = [*self.pairs, *([] if command.module else split_pairs(extra_opts()))]
        value = dict(zip(words[::2], words[1::2], strict=False)).get(OTHERS_KEY, usual)
        return names_of(KEYS[OTHERS_KEY].parse(value)) if value else []

    @property
    def finished(self) -> bool:
        """Is it done, with its path card where one belongs to it?"""
        from dassl.engine.checkpoint import finished
        from dassl.engine.others import lacks

        card = finished(self.folder, CARD, FIELDS[CARD]) if self.card else {}
        return self.done and not (self.card and (not card or lacks(card, self.others)))

    @property
    def words(self) -> tuple[str, dict[str, str], list[str]]:
        return self.command, dict(self.arguments), list(self.pairs)

    @property
    def begins_from(self) -> list[str]:
        """KEY, VALUE, ... of where its data, stage 1 and teacher lie, which may have moved since it ran."""
        passed = COMMANDS[self.command].passed
        places = {key: self.arguments[name] for key, name in passed.items() if key.endswith("_DIR")}
        stage1 = {what: run for what, run, *_ in needs(self.command, self.arguments)}["stage-1 checkpoint"]
        places |= {"RESUME_COOP": stage1, "DATASET.ROOT": folder("DATA", "data")}
        return [word for place in places.items() for word in place]

    @property
    def subject(self) -> str:
        """Its data set, or the order of its stream."""
        return self.arguments.get("DATASET") or self.arguments["LABEL"]

    def __str__(self) -> str:
        return f"{self.subject} seed {self.arguments['SEED']}: {self.command}"


def program(name: str, arguments: Arguments, pairs: list[str]) -> list[str]:
    """What Python is given to run a command."""
    module, argv = command_line(name, arguments, pairs)
    return ["train.py", *argv] if module == "train" else ["-m", module, *argv]


def command_line(name: str, arguments: Arguments, pairs: list[str]) -> tuple[str, list[str]]:
    """The module that runs a command, train.py's or another, and what its `main` is given."""
    module = COMMANDS[name].module
    return module or "train", (module_argv if module else train_argv)(name, arguments, pairs)


def module_argv(name: str, arguments: Arguments, pairs: list[str]) -> list[str]:
    """Arguments of a command that is no train.py line."""
    command = COMMANDS[name]
    out = str(run_folder(command, arguments))
    where, words = ["--root", folder("DATA", "data"), "--out", out], command.words(arguments)
    if command.evaluates:  # flags of its own, or keys of the run that it opens
        keys = zip(pairs[::2], pairs[1::2], strict=True)
        pairs = [word for key, value in keys for word in (*(("--set",) * (key[0] != "-")), key, value)]
    if command.free:  # what the user types comes last, and may be a list
        return [*where, *words, *["--"][: len(pairs)], *pairs]
    return [*words, *where, *pairs]


def train_argv(name: str, arguments: Arguments, pairs: list[str]) -> list[str]:
    """Arguments of train.py."""
    command = COMMANDS[name]
    argv = ["--root", folder("DATA", "data"), "--seed", arguments["SEED"], "--trainer", command.trainer]
    argv += ["--dataset-config-file", f"configs/datasets/{arguments['DATASET']}.yaml"]
    argv += ["--config-file", f"configs/trainers/{command.config.format(**arguments)}.yaml"]
    argv += ["--output-dir", str(run_folder(command, arguments))]
    places = {what: run for what, run, _, _ in needs(name, arguments)}
    if command.evaluates:
        argv += ["--model-dir", places["trained model"], "--eval-only"]
    if command.evaluates and arguments.get("LOADEP"):
        argv += ["--load-epoch", arguments["LOADEP"]]
    if command.eval_only:
        argv += ["--eval-only"]
    if command.stage1:
        argv += ["--resume-coop", places["stage-1 checkpoint"]]
    argv += ["DATASET.NUM_SHOTS", arguments["SHOTS"], "DATASET.SUBSAMPLE_CLASSES", command.subset]
    if names := others(command, arguments):
        argv += [OTHERS_KEY, names]
    if command.protocol != "base2novel":
        argv += ["TRAINER.MODAL", command.protocol]
    return argv + [word.format(**arguments) for word in command.pairs] + pairs


def needs(name: str, arguments: Arguments) -> list[tuple[str, str, str, Arguments]]:
    """What has to be there before a command runs: (what, folder, the command that makes it, its arguments)."""
    command, needed = COMMANDS[name], []

    def need(what: str, other: str, own: Arguments, run: str = "") -> None:
        needed.append((what, run or str(run_folder(COMMANDS[other], own)), other, own))

    if first := stage1_command(command):
        own = first_arguments(COMMANDS[first], arguments)
        need("stage-1 checkpoint", first, own, arguments.get("STUDENT_DIR", ""))
    if command.teacher:
        own = first_arguments(COMMANDS[command.teacher], arguments)
        need("teacher", command.teacher, own, arguments["TEACHER_DIR"])
    if command.evaluates:
        trained = command.evaluates.format(**arguments)
        own = of_source(arguments) | (of_stage1(arguments) if command.module else {})
        need("trained model", trained, COMMANDS[trained].complete(own))
    if command.follows:
        need(STREAM, command.follows(arguments), arguments)
    return needed


def start(name: str, arguments: Arguments, pairs: list[str]) -> None:
    """One run of a command, in this process: of train.py, or of a module's command line."""
    module, argv = command_line(name, arguments, pairs)
    importlib.import_module(module).main(argv)


# Is what lies there what is asked for?


def differences(job: Job, memo: dict) -> list[str]:
    """Lines on what the run in a job's folder has otherwise; [] where none has begun, or what it needs is gone.

    memo: of `train.differences`.
    """
    from dassl.utils import MissingFile

    module, argv = command_line(*job.words)
    with contextlib.suppress(MissingFile):
        return importlib.import_module(module).differences(argv, memo)
    return []


def settle(jobs: Sequence[Job], overwrite: bool = False) -> list[Job]:
    """Before any of the jobs begins: is what lies in their folders what they ask for?

    UserError for what is not; with `overwrite` that goes, and what came of it. Returns what is there though what it
    came of is not: to be settled again once that is made anew.
    """
    from dassl.utils import UserError

    problem, stale = compare(jobs)
    if problem and not overwrite:
        raise UserError(problem)
    for job in stale if overwrite else ():
        forget(job)
    return [] if overwrite else stale


def compare(jobs: Sequence[Job]) -> tuple[str, list[Job]]:
    """A line on what lies in the jobs' folders and is not what they ask for, "" if all is; and what `overwrite` takes
    away: that, what came of it, and halves that nothing goes on with."""
    from dassl.utils.progress import progress

    check_others(jobs)
    memo, again, stale, lines = {}, set(), [], {}
    for job in progress(jobs, "comparing what is there"):
        there = any(place.is_dir() for place in (job.folder, *(mark.parent for mark in job.marks)))
        if there and (other := differences(job, memo)):
            lines[job.folder] = other
        came_of = any(run in again for _, run, _, _ in needs(*job.words[:2]))
        half = is_merge(job) and not job.marks[-1].is_file()
        if came_of or job.folder in lines or not job.done:
            again.add(str(job.folder))
        if there and (came_of or half or job.folder in lines):
            stale.append(job)
    what = "; ".join(dict.fromkeys(line for other in lines.values() for line in other))
    problem = (
        f"{len(lines)} of {len(jobs)} were run otherwise, {next(iter(lines), '')} first: {what}. --overwrite does "
        "them and what came of them again, another OUTPUT keeps both"
    )
    return problem if lines else "", stale


def is_merge(job: Job) -> bool:
    """Or an ensemble."""
    return bool(COMMANDS[job.command].module and COMMANDS[job.command].marker)


def check_others(jobs: Sequence[Job]) -> None:
    """UserError where a data set that TEST.OTHERS names is unknown, or not below DATA."""
    from dassl.config import get_cfg_default, merge_tree, merge_yaml
    from dassl.engine.others import AUTO, other_sets

    asks = {job.arguments["DATASET"]: named for job in jobs if (named := set(job.others) - {AUTO})}
    for dataset, names in asks.items():
        cfg = get_cfg_default()
        merge_yaml(cfg, ROOT / "configs" / "datasets" / f"{dataset}.yaml")
        keys = {"DATASET.ROOT": folder("DATA", "data"), "DATASET.SUBSAMPLE_CLASSES": "new", OTHERS_KEY: sorted(names)}
        merge_tree(cfg, keys | {"VERBOSE": False}, "a command")
        other_sets(cfg)


def forget(job: Job) -> None:
    """Take away what says that a job is finished, or half; its next run begins anew. A stream does so itself."""
    from dassl.utils import RunLock

    place = job.folder if job.folder.is_dir() else job.marks[-1].parent  # of a stream's evaluation
    with RunLock(str(place)):
        for mark in [*job.marks[-1:], job.folder / CARD, job.folder / "resume.pt"]:
            mark.unlink(missing_ok=True)
    if is_merge(job):
        shutil.rmtree(job.folder)
