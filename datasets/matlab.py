"""Variables of MATLAB files, read in a process of their own: a damaged file can crash SciPy's reader, not only fail."""

import json
import os
import subprocess
import sys

SECONDS, MEMORY = 60, 2 << 30  # what reading one may take; the largest file that is known has 0.7 MB


def mat_variable(path: str, key: str, fields: tuple[str, ...] = ()) -> list:
    """The elements of a variable: numbers and texts, or {field: number or text} of records with these `fields`.

    MissingFile, or UserError for a file that is damaged or lacks the variable.
    """
    from dassl.utils import UserError, check_file

    check_file(path)
    line = [sys.executable, "-W", "ignore", os.path.abspath(__file__), path, key, *fields]
    try:
        child = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path} is damaged or no MATLAB file: reading it took over {SECONDS} seconds") from error
    if child.returncode:  # less than 0: a signal ended it
        why = [f"its reader ended with {child.returncode}", *child.stderr.strip().splitlines()][-1]
        raise UserError(f"{path} is damaged or no MATLAB file: {why}")
    elements = json.loads(child.stdout)
    if elements is None:
        raise UserError(f"{path} has no variable {key}")
    return elements


def main(path: str, key: str, *fields: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import numpy as np
    from scipy.io import loadmat

    tree, rows = loadmat(path, squeeze_me=True), None
    if key in tree:
        elements = np.atleast_1d(tree[key]).reshape(-1)
        rows = [{name: plain(row[name]) for name in fields} if fields else plain(row) for row in elements]
    sys.stdout.write(json.dumps(rows))


def plain(value: object) -> int | float | str:
    """A NumPy scalar or text as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
