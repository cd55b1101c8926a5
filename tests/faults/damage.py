"""Files that are damaged, lost or another run's, and commands killed before each change of a file: what comes of it.

A scene (see world.py) is played undisturbed first: what it reads, what it changes, what it leaves. Each trial then
plays it once more from the same beginning with one thing wrong, and holds what it leaves against the undisturbed one.
"""

import contextlib
import os
import shutil
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import torch

from tests.faults.traces import RESULTS, RESUME, differences, finished, left_over, place, stamps, unreadable
from tests.faults.warm import Hangs
from tests.faults.world import COUNTS

REFUSED, AGAIN, SAME, SAID, FAULT = OUTCOMES = (
    "refused in one line",
    "done again, same result",
    "same result",
    "said with a warning",
    "FAULT",
)
DAMAGES = ("flip", "cut", "empty", "lost", "other seed", "other classes")
SIBLINGS = {"other seed": {"seed": "2"}, "other classes": {"subset": "new"}}  # whose file of the same place is taken
KILLED = "killed"
PATIENCE = 180  # seconds until a process counts as hanging
IGNORED = (".lock", "log.txt")  # of the files that a scene reads
OPTIONAL = ("classes.json",)  # that earlier versions did not write


def kind_of(path):
    """What a file is, for the table."""
    path = Path(path)
    if ".pth.tar" in path.name:
        return "checkpoint"
    if path.suffix in (".png", ".jpg"):
        return "image"
    for folder, kind in (("features", "bank"), ("stream", "ConDU's stream"), ("sessions", "ConDU's session")):
        if folder in path.parts and path.name not in (RESULTS, RESUME):
            return kind
    return path.name.split("_")[0] if path.name.startswith("split") else path.name


def holds(path):
    """What an archive's records hold, {name: bytes}; None of another file or a damaged archive."""
    damage = zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError
    with contextlib.suppress(*damage), zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def damaged(content, damage, rng):
    """Bytes of a file after what can happen to a disk -> (bytes, where)."""
    if damage == "cut":
        end = rng.randrange(len(content))
        return content[:end], f"cut to {end} of {len(content)} bytes"
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :], f"bit {bit} of byte {at}"


class Stage:
    """Plays the scenes of a world. Attributes: rows, a list of what was tried and what came of it."""

    def __init__(self, world, warm, seed=0):
        self.world, self.warm, self.seed, self.rows = world, warm, seed, []
        self.scenes, self.played = world.scenes(), {}

    def folder(self, name, when, sibling=""):
        return self.world.folder / "scenes" / (sibling or "own") / name / when

    def _set(self, folder):
        for name, current in (("out", self.world.out), ("data", self.world.data)):
            place(folder / name, current)

    def _keep(self, folder):
        for name, current in (("out", self.world.out), ("data", self.world.data)):
            place(current, folder / name)

    def play(self, name, sibling=""):
        """The scene undisturbed, once -> its Running; what it began with and left lies in `folder`."""
        if (name, sibling) in self.played:
            return self.played[name, sibling]
        fresh = self.world.folder / "scenes" / "fresh"
        if not fresh.is_dir():
            place(self.world.data, fresh / "data")
        kept = {key: getattr(self.world, key) for key in ("seed", "subset")}
        for key, value in SIBLINGS.get(sibling, {}).items():
            setattr(self.world, key, value)
        scene = self.world.scenes()[name]
        if scene.before in self.scenes:
            self.play(scene.before, sibling)
            self._set(self.folder(scene.before, "after", sibling))
        else:
            self._set(fresh)
        if scene.before == "theirs":
            self.world.write_theirs(self.world.out)
        if scene.broken:
            running = self._start(scene, hold=[scene.broken])
            assert running.held(), running.text()
            running.kill()
            running.end()
        self._keep(self.folder(name, "before", sibling))
        running = self._start(scene, below=str(self.world.folder))
        assert running.end() == 0, f"{name}: {running.text()}"
        self._keep(self.folder(name, "after", sibling))
        for key, value in kept.items():
            setattr(self.world, key, value)
        self.played[name, sibling] = running
        return running

    def _start(self, scene, skips=False, **more):
        return self.warm.start(*scene.lines, counts=COUNTS, skips=skips, **more)

    def reads(self, name):
        """The files that lay there and that the scene opened, by kind: {kind: [path below the world's folder]}."""
        found, before = {}, self.folder(name, "before")
        paths = {event.words[0] for event in self.play(name).events() if event.kind == "read"}
        paths |= {str(path) for path in map(self._current(before), before.rglob("*.safetensors"))}
        for path in sorted(os.path.relpath(path, self.world.folder) for path in paths):
            if (before / path).is_file() and Path(path).name not in IGNORED and (before / path).stat().st_size:
                found.setdefault(kind_of(path), []).append(path)
        return found

    def _current(self, folder):
        return lambda path: self.world.folder / path.relative_to(folder)

    def spoil(self, name, path, damage, number=0):
        """Play a scene with one file damaged -> row, None where that changes nothing."""
        self.play(name)
        before, rng = self.folder(name, "before") / path, Random(f"{self.seed}/{name}/{path}/{damage}/{number}")
        content, what = before.read_bytes(), damage
        if damage in SIBLINGS and self.scenes[name].before == "theirs":
            return None  # what is asked for, not what lies beside it
        if damage in SIBLINGS:
            self.play(name, damage)
            other = self.folder(name, "before", damage) / path
            content = other.read_bytes() if other.is_file() else content
        elif damage == "empty":
            content = b""
        elif damage in ("flip", "cut"):
            content, what = damaged(content, damage, rng)
        if content == before.read_bytes() and damage != "lost":
            return None
        self._set(self.folder(name, "before"))
        current = self.world.folder / path
        if damage == "lost":
            current.unlink()
        else:
            current.write_bytes(content)
            shutil.copystat(before, current)  # a disk that loses a bit tells no time
        if damage == "flip" and holds(current) == holds(before) is not None:
            return None  # between an archive's records, where nothing is
        outcome, detail = self._outcome(name, path, content)
        return self._note(name, kind_of(path), damage, f"{path}: {what}", outcome, detail)

    def _note(self, scene, kind, damage, what, outcome, detail):
        self.rows.append(
            {"scene": scene, "kind": kind, "damage": damage, "what": what, "outcome": outcome, "detail": detail}
        )
        return self.rows[-1]

    def _outcome(self, name, path, content):
        """Play the scene as it lies -> (outcome, why)."""
        scene, undisturbed = self.scenes[name], self.play(name)
        running = self._start(scene)
        try:
            status = running.end(PATIENCE)
        except Hangs as error:
            return FAULT, f"hangs: {error}"
        text = running.text()
        if "Traceback" in text or status not in (0, 1):
            return FAULT, f"exit status {status}: {text[-1500:]}"
        if status:
            lines = running.errors()
            return (REFUSED, lines[0]) if len(lines) == 1 else (FAULT, f"{len(lines)} error lines: {text[-1500:]}")
        problems = self._differences(name, path)
        if scene.says and text != undisturbed.text():
            problems.append(f"prints {text[-300:]!r}")
        if not problems:
            after, current = self.folder(name, "after") / path, self.world.folder / path
            again = current.is_file() and current.read_bytes() not in (content, b"") and after.is_file()
            return (AGAIN if again else SAME), ""
        said = [line for line in text.splitlines() if line not in undisturbed.text().splitlines()]
        named = (Path(path).name, str(Path(path).parent), "unfinished")
        said = [line for line in said if any(word in line for word in named)]
        return (SAID, said[0]) if said else (FAULT, "; ".join(problems[:4]))

    def _differences(self, name, but=""):
        after, problems = self.folder(name, "after"), []
        for part, current in (("out", self.world.out), ("data", self.world.data)):
            problems += differences(after / part, current, but.removeprefix(f"{part}/"))
        return problems

    def moments(self, name):
        """The files that the undisturbed scene changes, in order, each as often as it does."""
        return [event.words[0] for event in self.play(name).events() if event.kind == "change"]

    def kill(self, name, moment):
        """Kill a scene before one of its changes, and type the same lines again -> row."""
        scene, whole = self.scenes[name], self.play(name)
        self._set(self.folder(name, "before"))
        running = self._start(scene, below=str(self.world.folder), change=moment)
        problems = [] if running.held() else [f"not held before change {moment}"]
        change = [event.words[0] for event in running.events() if event.kind == "change"][-1]
        running.kill()
        running.end()
        problems += unreadable(self.world.out)
        kept, left = finished(self.world.out), self._left(whole.steps(), running)
        again = self._start(scene, skips=True)
        try:
            status = again.end(PATIENCE)
        except Hangs as error:
            status, problems = -9, [*problems, str(error)]
        if status:
            problems.append(f"the same lines end with {status}: {again.text()[-1500:]}")
        else:
            problems += left_over(self.world.out) + self._differences(name)
            now = stamps(self.world.out)
            problems += [f"touched again: {path}" for path, was in kept.items() if left and now.get(path) != was]
            problems += [f"steps: {dict(again.steps())}, left to do: {dict(left)}"] if again.steps() != left else []
            problems += ["prints something else"] if scene.says and again.text() != whole.text() else []
        what = f"before change {moment}, of {os.path.relpath(change, self.world.folder)}"
        return self._note(name, name, KILLED, what, FAULT if problems else AGAIN, "; ".join(problems[:4]))

    def _left(self, steps, first):
        """The training steps that are left to do, judging by what lies there: those after the epochs of resume.pt."""
        left = Counter()
        for folder, epoch, batch in steps:
            every = [step for step in steps if step[0] == folder]
            if not Path(folder, RESULTS).is_file() and Path(folder, RESUME).is_file():
                done = torch.load(Path(folder, RESUME), weights_only=True)["epoch"]
            elif Path(folder, RESULTS).is_file() or all(step in first.steps() for step in every):
                done = 1 + max(step[1] for step in every)
            else:  # before the first epoch's end, or after the last one's
                done = 0
            if epoch >= done:
                left[folder, epoch, batch] = 1
        return left

    def links(self, name):
        """Plant a link to somebody's file in the place of each lock and temporary name of a scene -> rows."""
        first = len(self.rows)
        for path in sorted({path for path in self.moments(name) if path.endswith((".lock", ".tmp"))}):
            self._set(self.folder(name, "before"))
            theirs, what = self.world.folder / "theirs.txt", os.path.relpath(path, self.world.folder)
            theirs.write_text("theirs")
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).unlink(missing_ok=True)
            Path(path).symlink_to(theirs)
            outcome, detail = self._outcome(name, what, b"")
            if theirs.read_text() != "theirs":
                outcome, detail = FAULT, "the file behind the link was written to"
            self._note(name, "lock" if path.endswith(".lock") else "temporary name", "link", what, outcome, detail)
        return self.rows[first:]

    def trials(self, name, number=0):
        """Each (scene, path, damage) of one round: one path of each kind, drawn by the round's number."""
        for kind, paths in self.reads(name).items():
            path = Random(f"{self.seed}/{name}/{kind}/{number}").choice(paths)
            damages = [damage for damage in DAMAGES if damage != "lost" or kind not in OPTIONAL]
            yield from ((name, path, damage) for damage in damages)




def table(rows):
    """Lines: how often each outcome came, by kind of file and damage."""
    counts = Counter((row["kind"], row["damage"], row["outcome"]) for row in rows)
    keys = sorted({key[:2] for key in counts})
    widths = [max(len(str(key[i])) for key in [*keys, ("", "")]) for i in (0, 1)]
    lines = [f"{'':{widths[0]}}  {'':{widths[1]}} " + "".join(f"{name:>25}" for name in OUTCOMES)]
    for kind, damage in keys:
        numbers = "".join(f"{counts[kind, damage, name]:>25}" for name in OUTCOMES)
        lines.append(f"{kind:{widths[0]}}  {damage:{widths[1]}} {numbers}")
    total = Counter(row["outcome"] for row in rows)
    lines.append(f"{'all':{widths[0]}}  {len(rows):<{widths[1]}} " + "".join(f"{total[name]:>25}" for name in OUTCOMES))
    return lines
