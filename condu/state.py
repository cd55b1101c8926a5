"""What lies on disk: the state of a stream, all that ConDU (arXiv 2503.10705) keeps from one task to the next, and
apart from it experts, which fusing the tasks in any other order needs and a continual learner does not keep.

    session_<t>.safetensors   after task t: the unified delta (fp32 or bf16), a packed mask and prototypes a task; in
                              its header tasks, class lists, prompts, recipes, backbone, space, scales, norms
    <task>.safetensors        in a store of experts: a delta, prototypes, and the recipe

The highest session counts. A file is written beside its place and renamed, then the earlier one goes, so a process
killed anywhere leaves a whole session. A checksum covers all of a file, and each session has the tasks of those
before it. Letters: T tasks, C classes of a task, D joint width, P trained parameters. On disk: 4 P bytes (2 P if half)
and T ceil(P / 8), and kilobytes.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote

import torch
from torch import Tensor

from condu.fusion import Fusion
from dassl.engine.recipe import changed
from dassl.utils import MissingFile, RunLock, UserError, digest, load_tensors, read_facts, save_tensors, tensor_digest

SUFFIX = ".safetensors"
FORMAT = 2  # of a session; of 1, several files a session and a pointer to the one that counts, nothing is read
EARLIER = "stream.json"  # what format 1 left
SESSION = re.compile(r"session_(0|[1-9][0-9]*)\.safetensors")
PROTOTYPES = "prototypes."  # before the number of a task
EXPERT_FORMAT = 1
DELTA = "delta."  # before the names of an expert's tensors
NO_FILE_NAME = re.compile(r"[^\w .+&,()-]|^\.")


@dataclass
class Task:
    """A learned task: class names, prompt templates, the facts of its training (JSON), the digest of its expert's
    delta, which `Stream.add` fills in, and the preset that it was trained by, None where nobody knows."""

    name: str
    classnames: list[str]
    prompts: list[str]
    recipe: dict = field(default_factory=dict)
    expert: str = ""
    preset: str | None = None


class Stream:
    """The tasks learned so far, fused.

    Attributes: fusion; tasks, of Task, in the order of learning; prototypes, of (C, D), fp32 on the CPU;
    backbone, {"name", "digest"} of the pretrained weights; space, the JSON facts of what a delta is a delta of.

    Of what is fused already: `fusion`, its tasks and their prototypes. UserError unless they agree.
    """

    def __init__(self, *, backbone: Mapping, space: Mapping, scale="l1", fusion=None, tasks=(), prototypes=()):
        self.fusion: Fusion = Fusion(scale) if fusion is None else fusion
        self.backbone, self.space = _json(backbone), _json(space)
        self.tasks: list[Task] = []
        self.prototypes: list[Tensor] = []
        for task, rows in zip(tasks, prototypes, strict=True):
            _check(task, rows, self.prototypes)
            self.tasks.append(task)
            self.prototypes.append(rows.detach().float().cpu())
        if self.names() != list(self.fusion.tasks):
            raise UserError(
                f"The fusion is of {', '.join(self.fusion.tasks)}, but the tasks are {', '.join(self.names())}"
            )

    @property
    def session(self) -> int:
        """The number of the last task, counted from 0; -1 before the first."""
        return len(self.tasks) - 1

    def names(self) -> list[str]:
        """Task names, in the order of learning."""
        return [task.name for task in self.tasks]

    def trained_facts(self) -> dict:
        """What results.json says of the stream that is evaluated: preset, shots and seed of its training."""
        presets = dict.fromkeys(task.preset for task in self.tasks if task.preset is not None)
        facts: dict = {"preset": " and ".join(presets), "shots": None}
        for name in ("shots", "seed"):
            values = {task.recipe[name] for task in self.tasks if name in task.recipe}
            facts |= {name: values.pop()} if len(values) == 1 else {}
        return facts

    def add(self, task: Task, delta: Mapping[str, Tensor], prototypes: Tensor) -> bool:
        """Learn a task from its expert's delta and prototypes (C, D).

        False, with nothing changed, if it is the last task already: the run was killed and comes again.
        UserError: the name is taken, the delta cannot be fused, or the prototypes fit neither class names nor earlier
        tasks; nothing is changed.
        """
        task = Task(**_json(asdict(task) | {"expert": tensor_digest(delta)}))
        if task.name in self.names():
            number = self.names().index(task.name)
            if number == self.session and self.tasks[number].expert == task.expert:
                return False
            raise UserError(
                f"Task {task.name} is session {number} of the stream already, by another expert or not the last: "
                f"expert {self.tasks[number].expert}, now {task.expert}, tasks {', '.join(self.names())}"
            )
        _check(task, prototypes, self.prototypes)
        try:
            self.fusion.absorb(task.name, dict(sorted(delta.items())))  # files do not keep the order of names
        except ValueError as error:
            raise UserError(f"Task {task.name}: {error}") from error
        self.tasks.append(task)
        self.prototypes.append(prototypes.detach().float().cpu().clone())
        return True

    def save(self, folder, history: bool = False, half: bool = False) -> None:
        """Make this the session of the folder that counts.

        A process killed anywhere leaves the earlier session, or this one. history: keep the earlier ones. half: the
        unified delta as bf16, at most 2^-9 of each value off.
        WriteFailed: disk full, no permission; the earlier session still counts. UserError: the folder is in use, or it
        holds a stream that this does not continue.
        """
        facts = self.metadata(half)
        with RunLock(folder):
            there = sessions(folder)
            if there:
                _check_continues(folder, _facts(_file(folder, there[-1])), facts)
            tensors = self.fusion.state()[0]
            if half:
                tensors = {k: value.bfloat16() if value.is_floating_point() else value for k, value in tensors.items()}
            tensors |= {f"{PROTOTYPES}{number}": rows for number, rows in enumerate(self.prototypes)}
            save_tensors(_file(folder, self.session), tensors, facts)
            for number in () if history else there:
                if number != self.session:
                    os.unlink(_file(folder, number))

    def metadata(self, half: bool = False) -> dict:
        """All that a session's file says beside its tensors (JSON)."""
        identity = {"backbone": self.backbone, "space": self.space, "scale": self.fusion.scale}
        numbers = {"format": FORMAT, "session": self.session, "half": half}
        return identity | numbers | {"tasks": [asdict(t) for t in self.tasks], "fusion": _json(self.fusion.state()[1])}

    @classmethod
    def load(cls, folder, session: int | None = None, *, backbone=None, space=None, scale=None) -> "Stream":
        """A session, read to the CPU: the one that counts, or one that was kept. Facts that are asked for must
        agree, the backbone by its digest.

        MissingFile: nothing was saved there. UserError: no such session, another format, other facts (each with both
        values), a damaged file or one of another stream (named).
        """
        asked, there = {"backbone": backbone, "space": space, "scale": scale}, sessions(folder)
        try:
            return cls._read(folder, there, session, asked)
        except MissingFile:
            if there == sessions(folder):  # else a running process moved on while this one was reading
                raise
            return cls.load(folder, session, **asked)

    @classmethod
    def _read(cls, folder, there: list[int], session: int | None, asked: Mapping) -> "Stream":
        if not there:
            raise MissingFile(f'No stream in "{folder}": there is no session_<number>.safetensors')
        session = there[-1] if session is None else session
        if session not in there:
            kept = ", ".join(map(str, there))
            raise UserError(f'"{folder}" has no session {session}; there: {kept} (others were not kept)')
        for number in [session] if session != there[-1] else there[-2:-1]:  # no file of another stream
            _check_continues(_file(folder, number), *(_facts(_file(folder, n)) for n in (number, there[-1])))
        path = _file(folder, session)
        facts = _facts(path)
        _check_same(folder, facts, {key: value for key, value in asked.items() if value is not None})
        tensors, _, _ = load_tensors(path)
        try:
            tasks = [Task(**entry) for entry in facts["tasks"]]
            prototypes = [tensors.pop(f"{PROTOTYPES}{number}") for number in range(len(tasks))]
            fused = {"fusion": Fusion.from_state(tensors, facts["fusion"]), "tasks": tasks, "prototypes": prototypes}
            return cls(backbone=facts["backbone"], space=facts["space"], **fused)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f'"{path}" holds no stream: {error}') from error


def _file(folder, session: int) -> Path:
    return Path(folder) / f"session_{session}{SUFFIX}"


def sessions(folder) -> list[int]:
    """The sessions that can be loaded, ascending; none where nothing was saved. UserError for an earlier format."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if EARLIER in names:
        raise UserError(
            f'"{folder}" holds a stream of an earlier version ({EARLIER}), which this one does not read: evaluate it '
            "with that version, or train it again in another folder"
        )
    return sorted(int(match[1]) for match in map(SESSION.fullmatch, names) if match)


def session_digest(folder, session: int) -> str:
    """Which tasks, trained how, a session holds: of its `Stream.metadata`. Raises MissingFile, UserError."""
    return digest(_facts(_file(folder, session)))


def forget(folder, session: int) -> None:
    """Remove this session and the later ones, the last one first."""
    with RunLock(folder):
        for number in reversed(sessions(folder)):
            if number >= session:
                os.unlink(_file(folder, number))


def _json(value: Mapping) -> dict:
    """As it comes back from a file."""
    return json.loads(json.dumps(dict(value)))


def _check(task: Task, prototypes: Tensor, earlier: list[Tensor]) -> None:
    """Raise UserError unless the prototypes are finite, one row a class, and as wide as the earlier ones."""
    if not task.name or not task.classnames or not all(isinstance(name, str) for name in task.classnames):
        raise UserError(f"Task {task.name!r} needs a name and a list of class names, but has {task.classnames!r}")
    shape, count = tuple(prototypes.shape), len(task.classnames)
    width = earlier[0].shape[1] if earlier else shape[-1] if len(shape) == 2 else "D"
    if shape != (count, width):
        raise UserError(
            f"Task {task.name}: the prototypes are {shape}, expected ({count}, {width}): a row a class, as wide as "
            "the features"
        )
    if not torch.isfinite(prototypes).all():
        raise UserError(f"Task {task.name}: some prototypes are not finite")


def _facts(path: Path) -> dict:
    """What a session's file says of itself. Raises MissingFile; UserError for what is no session, or renamed."""
    facts = read_facts(path)
    match facts:
        case {"format": int(number)} if number > FORMAT:
            raise UserError(f'"{path}" has format {number}, and this version reads up to {FORMAT}')
        case {"session": int(), "backbone": {"digest": str()}, "space": dict(), "scale": str(), "tasks": [*tasks]} if (
            all(isinstance(task, dict) and {"name", "expert"} <= task.keys() for task in tasks)
        ):
            pass
        case _:
            raise UserError(f'"{path}" is damaged or not the state of a stream')
    if _file(path.parent, facts["session"]) != path:
        raise UserError(f'"{path}" is of another session, {facts["session"]}')
    return facts


def _check_continues(place, earlier: Mapping, later: Mapping) -> None:
    """UserError unless `earlier`, at `place`, is a session of the stream `later`, or that session itself."""
    _check_same(place, earlier, {key: later[key] for key in ("backbone", "space", "scale")})
    before, after = ([(str(t["name"]), str(t["expert"])) for t in facts["tasks"]] for facts in (earlier, later))
    if after[: len(before)] != before:
        named = [", ".join(f"{name} ({expert[:8]})" for name, expert in tasks) for tasks in (before, after)]
        raise UserError(
            f'"{place}" holds the stream {named[0]}, which {named[1]} does not continue (in brackets: the experts\' '
            "digests)"
        )


def _check_same(folder, facts: Mapping, asked: Mapping) -> None:
    """Raise one UserError with every fact that differs."""
    asked = _json(asked)
    if asked.get("backbone", {}).get("digest") == facts["backbone"]["digest"]:  # its name may be a path
        asked.pop("backbone")
    if lines := changed(facts, asked):
        raise UserError(f'"{folder}" holds another stream: {"; ".join(lines)}')


class ExpertStore:
    """A folder with a file <task>.safetensors for each expert: delta, prototypes (C, D) and facts.

    What cannot stand in a file's name is percent-encoded.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, task: str) -> Path:
        """The task's file. Raises UserError for a task without a name."""
        if not task.strip():
            raise UserError("A task has no name (DATASET.CUSTOM.TASK)")
        name = NO_FILE_NAME.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), task)
        return self.folder / (name + SUFFIX)

    def save(self, task: str, delta: Mapping[str, Tensor], prototypes: Tensor, facts: Mapping) -> None:
        """Write an expert, whole or not at all; an earlier one of the task is replaced. Raises WriteFailed."""
        tensors = {DELTA + name: value for name, value in delta.items()} | {"prototypes": prototypes}
        save_tensors(self.path(task), tensors, {"format": EXPERT_FORMAT, "task": task, "facts": dict(facts)})

    def load(self, task: str, facts: Mapping | None = None) -> tuple[dict, Tensor, dict]:
        """(delta, prototypes, facts) of an expert; it may say more than the facts asked for.
        UserError: no such expert, facts that differ, each named with both values; a damaged or foreign file."""
        path = self.path(task)
        if not path.is_file():
            raise UserError(f'"{self.folder}" has no expert of {task}; there: {", ".join(self.names()) or "none"}')
        tensors, header, _ = load_tensors(path)
        stored = header.get("facts")
        known = (header.get("format"), header.get("task")) == (EXPERT_FORMAT, task) and isinstance(stored, dict)
        if not known or "prototypes" not in tensors:
            raise UserError(f'"{path}" is no expert of {task} in format {EXPERT_FORMAT}')
        if lines := changed({name: stored.get(name) for name in facts or {}}, facts or {}):
            raise UserError(f'The expert "{path}" was trained otherwise: {"; ".join(lines)}')
        delta = {name.removeprefix(DELTA): value for name, value in tensors.items() if name.startswith(DELTA)}
        return delta, tensors["prototypes"], stored

    def names(self) -> list[str]:
        """Tasks that have a file here, sorted."""
        return sorted(unquote(path.name.removesuffix(SUFFIX)) for path in self.folder.glob(f"[!.]*{SUFFIX}"))
