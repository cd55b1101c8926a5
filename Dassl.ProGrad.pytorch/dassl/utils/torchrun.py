"""What torchrun left in the environment. Imports no torch: commands ask before they do."""

import contextlib
import os
from collections.abc import Callable, Iterator

from .errors import UserError, errors_in_one_line

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Around a command that one process does: of several that torchrun started the first does it, the others end."""
    if launched() and os.environ["RANK"] != "0":
        raise SystemExit(0)
    hidden = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def run_command(main: Callable[[], object]) -> None:
    """Run a command's `main` in one process; bad input ends it with one line on stderr and exit code 1."""
    with errors_in_one_line(), one_process():
        main()


def launched() -> bool:
    """Did torchrun start more than this process? UserError for an environment that says so only in part."""
    said = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if len(said) < len(_VARIABLES):  # some clusters set one or two of them for their own use
        return False
    numbers = [said[name] for name in _VARIABLES if name != "MASTER_ADDR"]
    if not all(text.isdecimal() for text in numbers) or int(said["RANK"]) >= max(1, int(said["WORLD_SIZE"])):
        raise UserError(f"torchrun's environment is damaged, expected numbers, RANK below WORLD_SIZE: {said}")
    return int(said["WORLD_SIZE"]) > 1
