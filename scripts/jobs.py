"""A job is one run of a command: what it is given and needs, whether it is finished, and as what is asked for."""

import contextlib
import importlib
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl import engine
from dassl.config import KEYS, get_cfg_default, merge_tree, merge_yaml
from dassl.utils import MissingFile, RunLock, UserError, split_pairs
from dassl.utils.progress import progress
from scripts.commands import COMMANDS, Command, folder, run_folder, stage1_command
from scripts.commands.command import OTHERS_KEY, ROOT, STAGE1, Arguments, first_arguments, of_source, of_stage1, others

STREAM = "trained stream"
CARD = "path.json"
FIELDS = {"results.json": "metrics", "sweep.json": "test", CARD: "barrier"}  # what a whole one has
PLACES = ("OUTPUT", "SWEEP")  # arguments of every command: where its folder lies


@dataclass(frozen=True)
class Job:
    """One run of a command. pairs: KEY VALUE words; card: draw its path afterwards."""

    command: str
    arguments: Arguments
    pairs: tuple[str, ...] = ()
    card: bool = False

    @property
    def declared(self) -> Command:
        return COMMANDS[self.command]

    @property
    def folder(self) -> Path:
        return run_folder(self.declared, self.arguments)

    @property
    def marks(self) -> list[Path]:
        """The files that a finished run has left."""
        marker = self.declared.marker
        return marker(self.arguments) if callable(marker) else [self.folder / marker]

    @property
    def is_merge(self) -> bool:
        """Or an ensemble."""
        return bool(self.declared.module) and not callable(self.declared.marker)

    @property
    def module(self) -> str:
        """What runs it."""
        return self.declared.module or "train"

    @property
    def argv(self) -> list[str]:
        """What the module's `main` is given."""
        return module_argv(self) if self.declared.module else train_argv(self)

    @property
    def program(self) -> list[str]:
        """What Python is given."""
        return ["train.py", *self.argv] if self.module == "train" else ["-m", self.module, *self.argv]

    @property
    def needs(self) -> dict[str, "tuple[str, Job]"]:
        """What has to be there before it runs: {what: (folder, the job that makes it)}."""
        command, arguments, places = self.declared, self.arguments, {}
        for what, name, key in (
            ("stage-1 checkpoint", stage1_command(command), "STUDENT_DIR"),
            ("teacher", command.teacher, "TEACHER_DIR"),
        ):
            if name:
                job = Job(name, first_arguments(COMMANDS[name], arguments))
                places[what] = arguments.get(key) or str(job.folder), job
        if command.evaluates:
            trained = command.evaluates.format(**arguments)
            shared = of_source(arguments) | (of_stage1(arguments) if command.module else {})
            job = Job(trained, COMMANDS[trained].complete(shared))
            places["trained model"] = str(job.folder), job
        if command.follows:
            job = Job(command.follows(arguments), arguments)
            places[STREAM] = str(job.folder), job
        return places

    @property
    def others(self) -> list[str]:
        """The names that TEST.OTHERS has for it or for its card; none where neither is about new classes."""
        command = self.declared
        if not (command.scores_new or self.card):
            return []
        on_card = "auto" if self.card and self.subject.startswith("toy_") else ""
        words = [*self.pairs, *([] if command.module else split_pairs(engine.config.extra_opts()))]
        pairs = dict(zip(words[::2], words[1::2], strict=False))
        value = pairs.get(OTHERS_KEY, others(command, self.arguments) or on_card)
        return engine.others.names_of(KEYS[OTHERS_KEY].parse(value)) if value else []

    @property
    def done(self) -> bool:
        """Has its run left results that can be read?"""
        results = [engine.checkpoint.finished(mark.parent, mark.name, FIELDS[mark.name]) for mark in self.marks]
        return bool(results) and all(results) and (self.card or not engine.others.lacks(results[-1], self.others))

    @property
    def finished(self) -> bool:
        """Is it done, with its path card where one belongs to it?"""
        card = engine.checkpoint.finished(self.folder, CARD, FIELDS[CARD]) if self.card else {}
        return self.done and not (self.card and (not card or engine.others.lacks(card, self.others)))

    @property
    def begins_from(self) -> list[str]:
        """KEY, VALUE, ... of where its data, stage 1 and teacher lie, which may have moved since it ran."""
        pairs = self.declared.pairs
        places = {key: self.arguments[name] for key, name in pairs.items() if key.endswith("_DIR")}
        places |= {"RESUME_COOP": self.needs["stage-1 checkpoint"][0], "DATASET.ROOT": folder("DATA", "data")}
        return [word for place in places.items() for word in place]

    @property
    def subject(self) -> str:
        """Its data set, or the order of its stream."""
        return self.arguments.get("DATASET") or self.arguments["LABEL"]

    def __str__(self) -> str:
        return f"{self.subject} seed {self.arguments['SEED']}: {self.command}"

    def line(self, python: str = "python") -> str:
        """The shell line of its script: arguments by place, then by name those that differ from the default."""
        placed = {key: self.arguments[key] for key in self.declared.arguments}
        usual = self.declared.complete(placed)
        known = [key for key in known_arguments(self.declared, self.arguments) if key in self.arguments]
        named = [f"{key}={self.arguments[key]}" for key in known if usual.get(key) != self.arguments[key]]
        tail = ["--", *self.pairs] if self.pairs else []
        script = f"scripts/{self.command}.sh"
        program = f"bash {script}" if (ROOT / script).is_file() else f"{python} scripts/run.py {self.command}"
        return " ".join([program, *map(shlex.quote, [*placed.values(), *named, *tail])])

    def lines(self, python: str = "python") -> Iterator[str]:
        """The line of its script, and that of its path card where one belongs to it."""
        yield self.line(python)
        if self.card:
            others = ["--others", *self.others] if self.others else []
            yield f"{python} -m mergetune.path_card {shlex.join([str(self.folder), *others])}"

    def start(self) -> None:
        """Run it in this process: train.py, or a module's command line."""
        importlib.import_module(self.module).main(self.argv)


def module_argv(job: Job) -> list[str]:
    """Arguments of a command that is no train.py line."""
    command, pairs = job.declared, job.pairs
    where, words = ["--root", folder("DATA", "data"), "--out", str(job.folder)], command.words(job.arguments)
    if command.evaluates:  # flags of its own, or keys of the run that it opens
        keys = zip(pairs[::2], pairs[1::2], strict=True)
        pairs = [word for key, value in keys for word in (*(("--set",) * (key[0] != "-")), key, value)]
    if command.free:  # what the user types comes last, and may be a list
        return [*where, *words, *["--"][: len(pairs)], *pairs]
    return [*words, *where, *pairs]


def train_argv(job: Job) -> list[str]:
    """Arguments of train.py."""
    command, arguments = job.declared, job.arguments
    places = {what: place for what, (place, _) in job.needs.items()}
    argv = ["--root", folder("DATA", "data"), "--seed", arguments["SEED"], "--trainer", command.trainer]
    argv += ["--dataset-config-file", f"configs/datasets/{arguments['DATASET']}.yaml"]
    argv += ["--config-file", f"configs/trainers/{command.config.format(**arguments)}.yaml"]
    argv += ["--output-dir", str(job.folder)]
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
    return [*argv, *(word for key, name in command.pairs.items() for word in (key, arguments[name])), *job.pairs]


def builds_on(command: Command, arguments: Arguments) -> list[Command]:
    """The commands whose runs it continues, learns from or merges."""
    merged = command.evaluates.format_map(defaultdict(str, arguments)) if command.module else ""
    return [COMMANDS[name] for name in (stage1_command(command), command.teacher, merged) if name in COMMANDS]


def known_arguments(command: Command, arguments: Arguments) -> list[str]:
    """The arguments of a command by name: of all its forms, or with a default; STAGE1_X: X of the stage 1 that it
    continues."""
    every = [*command.arguments, *sum(command.forms, ()), *command.defaults, *PLACES]
    every += ["LOADEP"] if command.evaluates and not command.module else []  # an epoch, or last, to evaluate
    every += ["OTHERS"] * command.scores_new
    every += [STAGE1 + key for before in builds_on(command, arguments) for key in before.defaults]
    return [*dict.fromkeys(["SEED", *every])]


# Is what lies there what is asked for?


def settle(jobs: Sequence[Job], overwrite: bool = False) -> list[Job]:
    """Before any of the jobs begins: is what lies in their folders what they ask for?

    UserError for what is not; with `overwrite` that goes, and what came of it. Returns what is there though what it
    came of is not: to be settled again once that is made anew.
    """
    problem, stale = compare(jobs)
    if problem and not overwrite:
        raise UserError(problem)
    for job in stale if overwrite else ():
        forget(job)
    return [] if overwrite else stale


def compare(jobs: Sequence[Job]) -> tuple[str, list[Job]]:
    """A line on what lies in the jobs' folders and is not what they ask for, "" if all is; and what `overwrite` takes
    away: that, what came of it, and halves that nothing goes on with."""
    check_others(jobs)
    memo, again, stale, lines = {}, set(), [], {}
    for job in progress(jobs, "comparing what is there"):
        begun = any(place.is_dir() for place in (job.folder, *(mark.parent for mark in job.marks)))
        other = []
        with contextlib.suppress(MissingFile):  # what it needs is gone
            other = importlib.import_module(job.module).differences(job.argv, memo) if begun else []
        came_of = any(run in again for run, _ in job.needs.values())
        if other:
            lines[job.folder] = other
        if other or came_of or not job.done:
            again.add(str(job.folder))
        if begun and (other or came_of or job.is_merge and not job.marks[-1].is_file()):
            stale.append(job)
    if not lines:
        return "", stale
    what = "; ".join(dict.fromkeys(line for other in lines.values() for line in other))
    return (
        f"{len(lines)} of {len(jobs)} were run otherwise, {next(iter(lines))} first: {what}. --overwrite does them and "
        "what came of them again, another OUTPUT keeps both"
    ), stale


def check_others(jobs: Sequence[Job]) -> None:
    """UserError where a data set that TEST.OTHERS names is unknown, or not below DATA."""
    asks = {job.arguments["DATASET"]: named for job in jobs if (named := set(job.others) - {engine.others.AUTO})}
    for dataset, names in asks.items():
        cfg = get_cfg_default()
        merge_yaml(cfg, ROOT / "configs" / "datasets" / f"{dataset}.yaml")
        keys = {"DATASET.ROOT": folder("DATA", "data"), "DATASET.SUBSAMPLE_CLASSES": "new", OTHERS_KEY: sorted(names)}
        merge_tree(cfg, keys | {"VERBOSE": False}, "a command")
        engine.others.other_sets(cfg)


def forget(job: Job) -> None:
    """Take away what says that a job is finished, or half; its next run begins anew. A stream does so itself."""
    place = job.folder if job.folder.is_dir() else job.marks[-1].parent  # of a stream's evaluation
    with RunLock(str(place)):
        for mark in [*job.marks[-1:], job.folder / CARD, job.folder / "resume.pt"]:
            mark.unlink(missing_ok=True)
    if job.is_merge:
        shutil.rmtree(job.folder)
