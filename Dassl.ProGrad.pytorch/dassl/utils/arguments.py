"""What people type: paths with a tilde, negative numbers, misspelt flags."""

import argparse
import itertools
import os
import re
from collections.abc import Callable, Iterable
from typing import NoReturn

from .errors import UserError
from .registry import closest


def expand_user(path: str | os.PathLike) -> str:
    """`path` with a leading `~` or `~user` replaced by that home folder. Raises UserError for an unknown user."""
    path = os.fspath(path)
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home folder of {path.split('/')[0]} (a name with a tilde: ./{path})")
    return expanded


def split_pairs(words: Iterable[str]) -> list[str]:
    """["KEY", "VALUE", "KEY=VALUE", ...] as ["KEY", "VALUE", ...]; the last value may be missing."""
    words, pairs = iter(words), []
    for word in words:
        joined = re.fullmatch(r"([A-Z][\w.]*)=(.*)", str(word), re.DOTALL)
        pairs += joined.groups() if joined else [word, *itertools.islice(words, 1)]
    return pairs


def _path(text: str) -> str:
    try:
        return expand_user(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


FLAGS: dict[str, dict] = {  # that several commands have
    "--root": {"type": "path", "default": "", "help": "folder of all data sets, if it is not where the run found it"},
    "--set": {"dest": "pairs", "nargs": 2, "action": "extend", "default": [], "metavar": ("KEY", "VALUE"),
              "help": "what else has moved: RESUME_COOP, a teacher"},
    "--overwrite": {"action": "store_true", "help": "make again what is finished"},
}  # fmt: skip


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, where -1e-3 and -.5 are values, `type="path"` expands `~`, and an error is one line.

    keys: gives names of config keys, which an unknown flag may have meant.
    """

    keys: Callable[[], Iterable[str]] = staticmethod(tuple)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("type", "path", _path)
        self._negative_number_matcher = re.compile(r"-\.?\d|-(inf|nan)\b")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[\w.-]+)", message)
        if unknown:
            message = f"unknown flag {unknown[1]}; nearest: {', '.join(self._nearest(unknown[1]))}"
        self.exit(2, f"{self.prog}: error: {message} (--help lists all flags)\n")

    def _nearest(self, flag: str) -> list[str]:
        """Flags and config keys that look like an unknown flag; of keys, the last part is compared."""
        names: dict[str, list[str]] = {}
        for name in (*self.keys(), *(string for action in self._actions for string in action.option_strings)):
            names.setdefault(name.rpartition(".")[2].strip("-").replace("-", "_").upper(), []).append(name)
        word = flag.rpartition(".")[2].strip("-").replace("-", "_").upper()
        return names.get(word) or [name for near in closest(word, names, n=2) for name in names[near]]


def command_parser(module: str, description: str, epilog: str = "", flags: Iterable[str] = ()) -> ArgumentParser:
    """The parser of `python -m MODULE`, with some of FLAGS; the epilog's lines are shown as they are."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = ArgumentParser(prog=f"python -m {module}", description=description, epilog=epilog, formatter_class=layout)
    for flag in flags:
        parser.add_argument(flag, **FLAGS[flag])
    return parser
