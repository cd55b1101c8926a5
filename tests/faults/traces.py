"""What a folder of runs holds: is each file whole, what was touched, and is it what another folder holds?"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open

RESULTS, RESUME = "results.json", "resume.pt"
OWN = {"wall_s", "peak_mb", "versions", "seconds", "inputs"}  # facts of one process, and of what it was given


def place(source, target):
    """Make `target` a copy of the folder `source`, times included; an empty folder if there is none, or it is None."""
    shutil.rmtree(target, ignore_errors=True)
    if source is not None and Path(source).is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        Path(target).mkdir(parents=True)


def stamps(folder):
    """{file: (inode, time of change)} of all files below a folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def finished(out):
    """`stamps` of what must not be touched again: runs with results, feature banks, earlier sessions of streams."""
    kept = {}
    for results in Path(out).rglob(RESULTS):
        kept |= stamps(results.parent)
    rounds = [str(path) for path in Path(out).rglob("round-*.safetensors")]
    rounds += [str(path) for path in Path(out).rglob("stream/session_*.safetensors")]
    return kept | {path: (Path(path).stat().st_ino, Path(path).stat().st_mtime_ns) for path in rounds}


def _tensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _checkpoint(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def _image(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _page(path):
    text = path.read_text()
    if not text.rstrip().endswith("</html>"):
        raise ValueError("it has no end")
    return [line for line in text.splitlines() if '"pairs":' not in line]  # facts of runs: seconds and memory too


READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".pt": _checkpoint,
    ".safetensors": _tensors,
    ".npy": np.load,
    ".yaml": lambda path: yaml.safe_load(path.read_text()),
    ".png": _image,
    ".html": _page,
    ".csv": Path.read_text,
    ".md": Path.read_text,
    ".tex": Path.read_text,
}


def reader(path):
    """The function that reads such a file, or None: logs, locks and temporary names."""
    if path.suffix == ".tmp" or ".tmp/" in str(path):
        return None
    if ".pth.tar" in path.name:
        return _checkpoint
    return READERS.get(path.suffix)


def unreadable(out):
    """One line for each file below a folder that bears its name and is not whole."""
    found = []
    for path in sorted(Path(out).rglob("*")):
        read = reader(path) if path.is_file() else None
        try:
            if read is not None and not path.stat().st_size:
                raise ValueError("it is empty")
            if read is not None:
                read(path)
        except Exception as error:
            found.append(f"not whole: {path} ({type(error).__name__}: {error})")
    return found


def left_over(out):
    """One line for each file that a finished project has no use for; a kill may leave resume.pt beside the results."""
    names = [path for path in Path(out).rglob("*") if path.suffix == ".tmp" or path.name == RESUME]
    names = [path for path in names if path.name != RESUME or not (path.parent / RESULTS).is_file()]
    return [f"left over: {path}" for path in names]


def same(a, b):
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(expected, found, but=""):
    """One line for each file in which two folders of runs differ, logs, locks and TensorBoard left out. but: a path
    below both that may hold anything."""
    there = [{path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file() and reader(path)}
             - {Path(but)} for folder in (expected, found)]  # fmt: skip
    there = [{p for p in paths if p.name != RESUME or p.with_name(RESULTS) not in paths} for paths in there]
    lines = [f"missing: {path}" for path in sorted(there[0] - there[1])]
    lines += [f"surplus: {path}" for path in sorted(there[1] - there[0])]
    for path in sorted(there[0] & there[1]):
        try:
            a, b = (reader(path)(Path(folder) / path) for folder in (expected, found))
        except Exception as error:
            lines.append(f"not whole: {path} ({type(error).__name__}: {error})")
            continue
        if path.suffix == ".json" and isinstance(a, dict) and isinstance(b, dict):
            a, b = ({key: value for key, value in facts.items() if key not in OWN} for facts in (a, b))
        if not same(a, b):
            keys = [key for key in a if not same(a[key], b.get(key))] if isinstance(a, dict) else ""
            lines.append(f"differs: {path} {keys or ''}".rstrip())
    return lines
