"""Files, seeds and the environment."""

import functools
import hashlib
import json
import os
import random
import shutil
import urllib.request
import warnings

import numpy as np
import PIL
import torch
from PIL import Image

from .atomic import atomic_write
from .errors import MissingFile, UserError


def mkdir_if_missing(dirname):
    """Make a folder with its parents; nothing happens if it exists."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Whether `fpath` is a file; warns if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path, sort=False):
    """Names in a folder without those that start with a dot, in the system's order unless `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath):
    """Parsed JSON file. Raises MissingFile, or UserError if it is not JSON."""
    try:
        with open(fpath, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise MissingFile(f'File is not found at "{fpath}"') from None
    except ValueError as error:
        raise UserError(f'"{fpath}" is not a JSON file: {error}') from error


def read_image(path):
    """RGB PIL image, fully decoded. Raises MissingFile, or UserError naming a file that is no whole image."""
    if not os.path.isfile(path):
        raise MissingFile(f'No file exists at "{path}"')
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        size = os.path.getsize(path)
        raise UserError(f'Image "{path}" cannot be read ({size} bytes): {error}') from error


def sha256_file(path):
    """SHA-256 of a file's bytes, in hexadecimal. Raises MissingFile."""
    try:
        with open(path, "rb") as file:
            state = hashlib.sha256()
            while block := file.read(1 << 20):
                state.update(block)
            return state.hexdigest()
    except FileNotFoundError:
        raise MissingFile(f'File is not found at "{path}"') from None


def digest(*parts):
    """128-bit BLAKE2b, in hexadecimal, of `parts` as canonical JSON (tuples count as lists)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def set_random_seed(seed):
    """Seed Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@functools.cache
def collect_env_info():
    """torch's report of the environment, with the version of Pillow as its last line; made once a process."""
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def tolist_if_not(x):
    """`x` itself if it is a list, else a list that holds it."""
    return x if isinstance(x, list) else [x]


def download_url(url, dst):
    """Fetch `url` into the file `dst`, whole or not at all. Raises UserError."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f'Only http and https can be downloaded, but got "{url}"')
    try:
        with urllib.request.urlopen(url, timeout=60) as source, atomic_write(dst) as file:
            shutil.copyfileobj(source, file)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'Cannot download "{url}": {error}') from error
