"""Files, seeds and the environment."""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import random
import sys
import urllib.request
import warnings
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import PIL

from .errors import UserError
from .files import atomic_write, check_file, read_json, write_json  # noqa: F401  imported from here by trainers written for Dassl
from .images import read_image  # noqa: F401  likewise
from .progress import progress
from .registry import check_availability, get_most_similar_str_to_a_from_b  # noqa: F401  likewise


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Make a folder with its parents; nothing happens if it exists."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Whether `fpath` is a file; warns if it is not."""
    is_file = os.path.isfile(fpath)
    if not is_file:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return is_file


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Names in a folder without those that start with a dot, in the system's order unless `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises MissingFile, or UserError for no plain file."""
    check_file(path)
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def digest(*parts) -> str:
    """128-bit BLAKE2b, in hexadecimal, of `parts` as canonical JSON (tuples count as lists)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@functools.cache
def collect_env_info() -> str:
    """torch's report of the environment, with the version of Pillow as its last line; made once a process."""
    from torch.utils import collect_env

    asking = collect_env.get_pip_packages
    collect_env.get_pip_packages = lambda run, *rest: asking(_pip_list, *rest)  # pip itself needs a second
    try:
        return f"{collect_env.get_pretty_env_info()}\n        Pillow ({PIL.__version__})"
    finally:
        collect_env.get_pip_packages = asking


def _pip_list(command):
    """What `pip list --format=freeze` prints, as collect_env's runner of commands answers: (status, output, errors)."""
    named = ((package.metadata["Name"], package) for package in metadata.distributions())
    lines = {f"{name}=={package.version}" for name, package in named if name}
    return 0, "\n".join(sorted(lines, key=str.lower)), ""


def tolist_if_not(x: Any) -> list:
    """`x` itself if it is a list, else a list that holds it."""
    return x if isinstance(x, list) else [x]


def download_url(url: str, dst: str | os.PathLike, sha256: str = "") -> None:
    """Fetch `url` into the file `dst`, whole or not at all. sha256: what it must have, in hexadecimal.
    UserError: no such address, no network, no room, or another file."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f'Only http and https can be downloaded, but got "{url}"')
    state = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as source, atomic_write(dst) as file:
            size = int(source.headers.get("Content-Length") or 0)
            with progress(what=os.path.basename(dst), total=size, unit="B", unit_scale=True) as bar:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
                    state.update(chunk)
                    bar.update(len(chunk))
            if sha256 and state.hexdigest() != sha256:
                raise OSError(f"what arrived has sha256 {state.hexdigest()}, expected {sha256}")
    except OSError as error:
        raise UserError(f'Cannot download "{url}": {error}') from error


def import_matplotlib() -> ModuleType:
    """matplotlib -> the module, imported whatever MPLBACKEND says; nothing here opens a window.

    Jupyter and Colab name a backend in it that other environments lack, and matplotlib refuses to be imported. What it
    names is left to a notebook's own plots, where it is there.
    """
    asked = "" if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", "")
    matplotlib = importlib.import_module("matplotlib")
    if asked:
        os.environ["MPLBACKEND"] = asked
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked
    return matplotlib
