"""Accuracy matrices as text."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from condu.metrics import AccuracyMatrix

METRICS = ("transfer", "average", "last")
TITLE = 52  # letters of a row's name


def head(title: str = "", columns: Sequence[str] = ("Transfer", "Average", "Last")) -> str:
    return f"{title:<{TITLE}}" + "".join(f"{name:>14}" for name in columns)


def row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<{TITLE}}" + "".join(f"{cell:>14}" for cell in cells)


def number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def summary(matrices: Mapping[str, AccuracyMatrix], title: str = "") -> Iterator[str]:
    """Transfer, Average and Last of each."""
    yield head(title)
    for name, matrix in matrices.items():
        found = matrix.summary()
        yield row(name, [number(found[key]) for key in METRICS])


def spread(values: Sequence[float | None]) -> str:
    """Mean and population deviation, as all tables have it."""
    known = [value for value in values if value is not None]
    if not known:
        return "—"
    deviation = statistics.pstdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):.2f} ± {deviation:.2f}"


def whole(matrix: AccuracyMatrix, title: str = "") -> Iterator[str]:
    """The matrix: a row after each task, a column for each test set."""
    width = max(len(title), *(len(name) for name in matrix.tasks)) + 1
    yield f"{title:<{width}}" + "".join(f"{name[:10]:>11}" for name in matrix.tasks)
    for name, cells in zip(matrix.tasks, matrix.accuracy.tolist(), strict=True):
        yield f"{name:<{width}}" + "".join(f"{cell:11.2f}" for cell in cells)
