"""The state of a stream: all that ConDU (arXiv 2503.10705) keeps from one task to the next, in one folder.

    stream.json                          which session counts (condu.sessions)
    session_<t>/stream.json              tasks, class lists, prompts, recipes, backbone, space, scales, norms
    session_<t>/fusion.safetensors       unified delta (fp32 or bf16) and packed masks
    session_<t>/prototypes.safetensors   one tensor a task

Letters: T tasks, C classes of a task, D joint width, P trained parameters. On disk: 4 P bytes (2 P if half)
and T ceil(P / 8), and kilobytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from condu.fusion import Fusion
from condu.sessions import FILE, Sessions, exists, formed
from dassl.utils import MissingFile, RunLock, UserError, tensor_digest

__all__ = ["Stream", "Task", "exists", "sessions"]

FUSION, PROTOTYPES = "fusion.safetensors", "prototypes.safetensors"
_KINDS = {"backbone": dict, "space": dict, "scale": str, "tasks": list, "fusion": dict}


@dataclass
class Task:
    """A learned task: class names, prompt templates, the facts of its training (JSON), the digest of its expert's
    delta, which `Stream.add` fills in, and the preset that it was trained by, None in older streams."""

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
    """

    def __init__(self, fusion: Fusion, backbone: Mapping, space: Mapping):
        self.fusion, self.backbone, self.space = fusion, _json(backbone), _json(space)
        if not {"name", "digest"} <= self.backbone.keys():
            raise UserError(f"The backbone of a stream needs a name and a digest, but is {self.backbone}")
        self.tasks: list[Task] = []
        self.prototypes: list[Tensor] = []

    @classmethod
    def new(cls, *, backbone: Mapping, space: Mapping, scale: str = "l1") -> "Stream":
        """A stream without tasks. Raises UserError for an unknown scale rule."""
        try:
            return cls(Fusion(scale), backbone, space)
        except ValueError as error:
            raise UserError(str(error)) from error

    @classmethod
    def of(cls, fusion: Fusion, tasks, prototypes, *, backbone: Mapping, space: Mapping) -> "Stream":
        """A stream of what is fused already. Raises UserError unless tasks, prototypes and fusion agree."""
        stream = cls(fusion, backbone, space)
        for task, rows in zip(tasks, prototypes, strict=True):
            _check(task, rows, stream.prototypes)
            stream.tasks.append(task)
            stream.prototypes.append(rows.detach().float().cpu())
        if stream.names() != list(fusion.tasks):
            raise UserError(
                f"The fusion is of {', '.join(fusion.tasks)}, but the tasks are {', '.join(stream.names())}"
            )
        return stream

    @property
    def scale(self) -> str:
        """The rule of the scales."""
        return self.fusion.scale

    @property
    def session(self) -> int:
        """The number of the last task, counted from 0; -1 before the first."""
        return len(self.tasks) - 1

    def names(self) -> list[str]:
        """Task names, in the order of learning."""
        return [task.name for task in self.tasks]

    def trained_facts(self, presets=()) -> dict:
        """What results.json says of the stream that is evaluated: preset, shots and seed of its training.

        presets: of an older stream's sessions, as their own results say.
        """
        known = [task.preset for task in self.tasks if task.preset is not None] or presets
        names = list(dict.fromkeys(name or "" for name in known))
        facts: dict = {"preset": " and ".join(names), "shots": None}
        for name in ("shots", "seed"):
            values = {task.recipe[name] for task in self.tasks if name in task.recipe}
            facts |= {name: values.pop()} if len(values) == 1 else {}
        return facts

    def add(self, task: Task, delta: Mapping[str, Tensor], prototypes: Tensor) -> bool:
        """Learn a task from its expert's delta and prototypes (C, D).

        False, with nothing changed, if it is the last task already: the run was killed and comes again.

        Raises:
            UserError: the name is taken, the delta is not the task's expert or cannot be fused, or the
            prototypes fit neither class names nor earlier tasks; nothing is changed.
        """
        expert = tensor_digest(delta)
        if task.expert not in ("", expert):
            raise UserError(f"Task {task.name}: the delta has the digest {expert}, expected {task.expert}")
        if task.name in self.names():
            number = self.names().index(task.name)
            if number == self.session and self.tasks[number].expert == expert:
                return False
            raise UserError(
                f"Task {task.name} is session {number} of the stream already, by another expert or not the last: "
                f"expert {self.tasks[number].expert}, now {expert}, tasks {', '.join(self.names())}"
            )
        task = replace(task, **_json(asdict(task) | {"expert": expert}))
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

        A process killed anywhere leaves the earlier session, or this one. history: keep the earlier one's
        folder. half: the unified delta as bf16, at most 2^-9 of each value off.

        Raises:
            WriteFailed: disk full, no permission; the earlier session still counts.
            UserError: there is no task, the folder is in use, or it holds a stream that this does not continue.
        """
        if not self.tasks:
            raise UserError(f'A stream without tasks cannot be saved to "{folder}"')
        with RunLock(folder):
            there = Sessions(folder)
            if there.current is not None:
                self._check_continues(there.folder, _facts(there))
            tensors, fused = self.fusion.state()
            if half:
                tensors = {
                    key: value.bfloat16() if value.is_floating_point() else value for key, value in tensors.items()
                }
            prototypes = {str(number): rows for number, rows in enumerate(self.prototypes)}
            tasks = [asdict(task) for task in self.tasks]
            facts = {**self._identity(), "half": half, "tasks": tasks, "fusion": _json(fused)}
            there.write(self.session, facts, {FUSION: tensors, PROTOTYPES: prototypes}, history)

    def _identity(self) -> dict:
        return {"backbone": self.backbone, "space": self.space, "scale": self.scale}

    def _check_continues(self, folder: Path, earlier: Mapping) -> None:
        """Refuse to put this stream in the place of another, or of a later session of itself."""
        _check_same(folder, earlier, self._identity())
        theirs = [(task["name"], task["expert"]) for task in earlier["tasks"]]
        ours = [(task.name, task.expert) for task in self.tasks]
        if ours[: len(theirs)] != theirs:
            raise UserError(
                f'"{folder}" holds the stream {_named(theirs)}, which {_named(ours)} does not continue '
                "(in brackets: the experts' digests)"
            )

    @classmethod
    def load(cls, folder, session: int | None = None, *, backbone=None, space=None, scale=None) -> "Stream":
        """A session, read to the CPU: the one that counts, or one that was kept. Facts that are asked for must
        agree, the backbone by its digest.

        Raises:
            MissingFile: nothing was saved there.
            UserError: no such session, a newer format, other facts (each with both values), a damaged file
            (named).
        """
        asked = {"backbone": backbone, "space": space, "scale": scale}
        there = Sessions(folder)
        while True:
            try:
                return cls._read(there, session, {key: value for key, value in asked.items() if value is not None})
            except MissingFile:
                before, there = there.current, Sessions(folder)
                if before == there.current:  # else a running process moved on while this one was reading
                    raise

    @classmethod
    def _read(cls, there: Sessions, session: int | None, asked: Mapping) -> "Stream":
        facts = _facts(there, session)
        _check_same(there.folder, facts, asked)
        tensors, prototypes = there.tensors(facts, FUSION), there.tensors(facts, PROTOTYPES)
        try:
            fusion = Fusion.from_state(tensors, facts["fusion"])
            tasks = [Task(**told) for told in facts["tasks"]]
            rows = [prototypes[str(number)] for number in range(len(tasks))]
            stream = cls.of(fusion, tasks, rows, backbone=facts["backbone"], space=facts["space"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f'"{there.home(facts["session"])}" holds no stream: {error}') from error
        return stream


def sessions(folder) -> list[int]:
    """The sessions that can be loaded, ascending; none where nothing was saved. Raises UserError."""
    return Sessions(folder).numbers


def _json(value):
    """As it comes back from a file. Raises UserError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise UserError(f"Facts of a stream must be JSON ({error}), but got {value}") from error


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


def _facts(there: Sessions, session: int | None = None) -> dict:
    """The facts of a session, which a stream has and of its kinds. Raises as `Sessions.manifest`."""
    facts = there.manifest(session)
    path = there.home(facts["session"]) / FILE
    formed(path, facts, _KINDS)
    known = [facts["backbone"].get("digest")]
    for task in facts["tasks"]:
        known += [task.get(name) for name in ("name", "expert")] if isinstance(task, dict) else [None]
    if not all(isinstance(value, str) for value in known):
        raise UserError(f'"{path}": the digest of the backbone, or the name or expert of a task, is no text')
    return facts


def _check_same(folder: Path, facts: Mapping, asked: Mapping) -> None:
    """Raise one UserError with every fact that differs."""
    differ = []
    for key, value in asked.items():
        ours, theirs = value if isinstance(value, str) else _json(value), facts[key]
        same = ours["digest"] == theirs["digest"] if key == "backbone" else ours == theirs  # a name may be a path
        if not same:
            differ.append(f"{key} {_words(theirs)}, expected {_words(ours)}")
    if differ:
        raise UserError(f'"{folder}" holds another stream: {"; ".join(differ)}')


def _named(tasks: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({expert[:8]})" for name, expert in tasks)


def _words(value) -> str:
    return " ".join(f"{key} {fact}" for key, fact in value.items()) if isinstance(value, dict) else str(value)
