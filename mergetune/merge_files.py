"""Weights that were merged elsewhere, as files the released MERGETUNE evaluates: PREFIX_ties_lambda_VALUE.pth."""

import re
from pathlib import Path

from dassl.utils import MissingFile, UserError, sha256_file

SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
LAMBDA = re.compile(r".*_lambda_(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)(?:\.pth|\.pt|\.pth\.tar|\.safetensors)")
TITLES = {"ties": "TIES", "dare": "DARE"}


def find_merged(folder: str, method: str, *, value: float | None = None, prefix: str = "", name: str = "") -> Path:
    """The one file of merged weights in a folder that is meant.

    method: ties (names with `_lambda_VALUE`) or dare (names with `dare`). value: of lambda, compared as a number.
    prefix: how the name begins. name: the file itself, its suffix optional, or a folder below.
    MissingFile where nothing fits, UserError where several do: both say what is there.
    """
    place = Path(folder)
    if name and (place / name).is_dir():
        place, name = place / name, ""
    there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if name:
        exact = [file for file in (name, *(name + suffix for suffix in SUFFIXES)) if file in there]
        if not exact:
            raise MissingFile(f"No merged weights {name} in {place} (there: {', '.join(there) or 'nothing'})")
        return place / exact[0]
    files = [file for file in there if file.startswith(prefix) and file.endswith(SUFFIXES)]
    files = [file for file in files if (method == "dare") == ("dare" in file.lower())]
    if method == "ties" or value is not None:
        files = [file for file in files if _lambda(file) is not None]
    if not files:
        wanted = f"{prefix or 'PREFIX'}_ties_lambda_VALUE.pth" if method == "ties" else f"{prefix}*dare*.pth"
        raise MissingFile(f"No merged weights {wanted} in {place} (there: {', '.join(there) or 'nothing'})")
    chosen = files if value is None else [file for file in files if _lambda(file) == value]
    if not chosen:
        known = ", ".join(f"{v:g}" for v in sorted({_lambda(file) for file in files}))
        raise MissingFile(f"No merged weights of lambda {value:g} in {place}; --lambda-val can be {known}")
    if len(chosen) > 1:
        values = {_lambda(file) for file in chosen}
        flag = "--lambda-val" if len(values - {None}) == len(chosen) else "--model-prefix or --model-name"
        raise UserError(f"{place} holds several merged weights ({', '.join(chosen)}): choose with {flag}")
    return place / chosen[0]


def _lambda(file: str) -> float | None:
    """The number in a file's name."""
    found = LAMBDA.fullmatch(file)
    return float(found[1]) if found else None


def merged_row(file: Path, method: str) -> dict:
    """What the evaluation of such a file says of its weights."""
    value = _lambda(file.name)
    title = TITLES[method] + ("" if value is None else f" (lambda {value:g})")
    merged = {"method": method, "values": {} if value is None else {"lambda": value}, "file": file.name}
    merged["sha256"] = sha256_file(str(file))
    return {"preset": title, "merge": merged, "alpha_chosen_on": "given", "data_seen": "unknown: merged elsewhere"}
