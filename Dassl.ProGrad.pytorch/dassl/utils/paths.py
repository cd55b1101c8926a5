"""Paths as people type them."""

import os

from .errors import UserError


def expand_user(path: str | os.PathLike) -> str:
    """`path` with a leading `~` or `~user` replaced by that home folder. Raises UserError for an unknown user."""
    path = os.fspath(path)
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home folder of {path.split('/')[0]} (a name with a tilde: ./{path})")
    return expanded
