"""Numbered sessions in one folder, of which one counts: how the state of a stream survives a kill.

    stream.json                     the pointer: which session counts, which are kept beside it; replaced last
    session_<t>/stream.json         the facts of session t and the checksums of its files
    session_<t>/*.safetensors       its tensors

A session is written into a temporary folder and renamed, then the pointer is replaced, then what it named
before is removed. Only what the pointer names is ever read. All files have checksums, and the pointer holds
those of the sessions' facts. ConDU: arXiv 2503.10705.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dassl.utils import (
    MissingFile,
    UserError,
    atomic_folder,
    brief,
    digest,
    load_tensors,
    read_json,
    save_tensors,
    tensor_checksum,
    write_json,
)

FORMAT = 1
FILE = "stream.json"
_POINTER = {"session": int, "sessions": dict, "leaving": list}
LEFT_OVER = re.compile(r"\.(session_\d+(_\d+)?|stream\.json)\.\d+\.tmp")


def exists(folder) -> bool:
    """Whether a stream was saved there."""
    return os.path.isfile(os.path.join(folder, FILE))


class Sessions:
    """The sessions that a folder's pointer names; none if there is no pointer.

    Attributes: folder; current, the number that counts (None without sessions); numbers, all, ascending.

    Raises:
        UserError: the pointer is damaged or newer than this code.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._entries: dict[int, dict] = {}
        self._leaving: list[str] = []
        self.current: int | None = None
        if exists(folder):
            facts = formed(self.folder / FILE, unseal(self.folder / FILE), _POINTER)
            self.current, self._leaving = facts["session"], facts["leaving"]
            self._entries = {int(number): entry for number, entry in facts["sessions"].items()}

    @property
    def numbers(self) -> list[int]:
        return sorted(self._entries)

    def home(self, number: int) -> Path:
        """The folder of a session."""
        return self.folder / self._entries[number]["folder"]

    def manifest(self, number: int | None = None) -> dict:
        """The facts of a session, or of the one that counts.

        Raises:
            MissingFile: nothing was saved there, or the file is gone.
            UserError: no such session, damaged, newer, or not the file that the pointer means.
        """
        if self.current is None:
            raise MissingFile(f'No stream in "{self.folder}": there is no {FILE}')
        number = self.current if number is None else number
        if number not in self._entries:
            there = ", ".join(map(str, self.numbers))
            raise UserError(f'"{self.folder}" has no session {number}; there: {there} (others were not kept)')
        path = self.home(number) / FILE
        facts = formed(path, unseal(path), {"files": dict})
        if facts["check"] != self._entries[number]["check"] or facts.get("session") != number:
            raise UserError(f'"{path}" is not the session {number} that "{self.folder / FILE}" names')
        return facts

    def tensors(self, manifest: Mapping, file: str) -> dict[str, Tensor]:
        """A file of the session with these facts. Raises MissingFile, UserError."""
        path = self.home(manifest["session"]) / file
        tensors, _, checksum = load_tensors(path)
        if checksum != manifest["files"].get(file):
            raise UserError(f'"{path}" is of another session: its checksum is {checksum}')
        return tensors

    def write(self, number: int, facts: Mapping, files: Mapping[str, Mapping[str, Tensor]], history: bool) -> None:
        """Make {file: tensors} with these facts the session that counts; the caller holds the folder's lock.

        Nothing is written if it is already. history: keep the session that counted before, unless it has the
        same number.

        Raises:
            WriteFailed: what counted before still does.
            UserError: a folder that is no session of ours has its name.
        """
        self._clean()
        facts = {**facts, "format": FORMAT, "session": number}
        if number == self.current and self._holds(facts, files):
            return
        name = self._free_name(number)
        with atomic_folder(self.folder / name) as temporary:
            sums = {file: save_tensors(Path(temporary) / file, tensors) for file, tensors in files.items()}
            manifest = seal({**facts, "files": sums})
            write_json(manifest, Path(temporary) / FILE)
        replaced = self.current is not None and (self.current == number or not history)
        self._leaving = [self._entries.pop(self.current)["folder"]] if replaced else []
        self._entries[number] = {"folder": name, "check": manifest["check"]}
        self.current = number
        entries = {str(number): self._entries[number] for number in self.numbers}
        pointer = {"format": FORMAT, "session": number, "sessions": entries, "leaving": self._leaving}
        write_json(seal(pointer), self.folder / FILE)
        self._clean()

    def _holds(self, facts: Mapping, files: Mapping) -> bool:
        sums = {file: tensor_checksum(tensors) for file, tensors in files.items()}
        return self._entries[self.current]["check"] == seal({**facts, "files": sums})["check"]

    def _free_name(self, number: int) -> str:
        """session_<number>, or with _1, _2 while the pointer uses that; a session nobody names gives way."""
        taken = {entry["folder"] for entry in self._entries.values()}
        names = [f"session_{number}", *(f"session_{number}_{i}" for i in range(1, len(taken) + 1))]
        name = next(name for name in names if name not in taken)
        self._discard(name)
        if (self.folder / name).exists() and any((self.folder / name).iterdir()):
            raise UserError(f'"{self.folder / name}" is in the way and is no session of a stream: move it')
        return name

    def _clean(self) -> None:
        """Remove what no longer counts, and what killed processes left half written."""
        for name in self._leaving:
            self._discard(name)
        for path in self.folder.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def _discard(self, name: str) -> None:
        """Remove a session's folder. Renamed first, so that no half of it keeps its name."""
        if (self.folder / name / FILE).is_file():
            away = self.folder / f".{name}.{os.getpid()}.tmp"
            os.rename(self.folder / name, away)
            shutil.rmtree(away, ignore_errors=True)


def formed(path: Path, facts: dict, kinds: Mapping) -> dict:
    """`facts`, in which these entries are of these kinds. UserError names the one that is not."""
    for name, kind in kinds.items():
        if not isinstance(facts.get(name), kind):
            raise UserError(f'"{path}": {name} is {brief(facts.get(name))}, expected {kind.__name__}')
    if not all(_is_name(name) for name in facts.get("leaving", ())):  # what is named there gets removed
        raise UserError(f'"{path}": leaving is {brief(facts["leaving"])}, expected names of folders here')
    for number, entry in facts.get("sessions", {}).items():
        whole = isinstance(entry, dict) and _is_name(entry.get("folder")) and isinstance(entry.get("check"), str)
        if not (number.isdecimal() and whole):
            raise UserError(
                f'"{path}": session {brief(number)} is {brief(entry)}, expected a folder here and its check'
            )
    return facts


def _is_name(name: object) -> bool:
    """Whether it names something in a folder, and nothing above or below it."""
    return isinstance(name, str) and os.path.basename(name) == name and name not in ("", ".", "..")


def seal(facts: Mapping) -> dict:
    """With a digest of itself."""
    facts = {key: value for key, value in facts.items() if key != "check"}
    return facts | {"check": digest(facts)}


def unseal(path: Path) -> dict:
    """A JSON file of ours. Raises MissingFile; UserError if it is damaged, foreign or newer."""
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("format"), int) or "check" not in facts:
        raise UserError(f'"{path}" is damaged or not the state of a stream')
    if facts["format"] > FORMAT:
        raise UserError(f'"{path}" has format {facts["format"]}, and this version reads up to {FORMAT}')
    if facts != seal(facts):
        raise UserError(f'"{path}" is damaged: its checksum is wrong')
    return facts
