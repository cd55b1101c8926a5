"""Accuracy on every task after every task, and the three numbers that continual learning reads off it.

As ZSCL (arXiv 2303.06628) and ConDU (arXiv 2503.10705) define them, a[i][j] being the accuracy on task j after
learning task i, both counted in the order of the stream, and no row for the untrained model:

    Transfer_j = mean of a[i][j] over i < j     what the stream does to a task before its turn; the first has none
    Average_j  = mean of a[i][j] over all i
    Last_j     = a[T][j]

and Transfer, Average, Last are their means over tasks (T - 1, T and T of them). T: tasks of the stream.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MISSING = -1  # in `correct`: a cell that was not measured


class AccuracyMatrix:
    """Correctly classified test images by (task just learned, task tested).

    tasks: T names in the order of the stream; correct: (T, T) integers, rows: after task i, columns: tested on task
    j, -1 where nobody measured; total: (T,) test images of each task. ValueError for what does not fit.
    """

    def __init__(self, tasks: Sequence[str], correct, total):
        self.tasks, size = list(tasks), len(tasks)
        if not size or len(set(self.tasks)) < size:
            raise ValueError(f"tasks: expected one name or more, all different; found {self.tasks}")
        self.correct, self.total = _integers("correct", correct, (size, size)), _integers("total", total, (size,))
        if (self.total < 1).any():
            raise ValueError(f"total: expected an image or more of each task, found {self.total.tolist()}")
        for i, j in ((self.correct > self.total) | (self.correct < MISSING)).nonzero().tolist():
            raise ValueError(
                f"{self.tasks[j]} after {self.tasks[i]}: {int(self.correct[i, j])} correct of {int(self.total[j])}"
            )
        self.accuracy = torch.where(self.correct == MISSING, math.nan, 100 * self.correct.double() / self.total)

    @property
    def transfer(self) -> list[float | None]:
        """Transfer_j in percent; None for the first task, and where a cell above the diagonal is missing."""
        return [None] + [_mean(self.accuracy[:j, j]) for j in range(1, len(self.tasks))]

    @property
    def average(self) -> list[float | None]:
        """Average_j in percent; None where a cell of the column is missing."""
        return [_mean(column) for column in self.accuracy.T]

    @property
    def last(self) -> list[float | None]:
        """Last_j in percent, None where missing."""
        return [_mean(cell) for cell in self.accuracy[-1:].T]

    def summary(self) -> dict[str, float | None]:
        """{"transfer", "average", "last"}: means over tasks in percent; None where a task that counts has none."""
        rows = {"transfer": self.transfer[1:], "average": self.average, "last": self.last}
        return {name: None if not row or None in row else sum(row) / len(row) for name, row in rows.items()}

    def to_json(self) -> dict:
        """-> {"tasks", "correct", "total", "accuracy", "transfer", "average", "last"}, lists with null for missing.

        `from_json` reads tasks and counts; the rest is for readers that do not know the formulas.
        """
        correct = [[None if x == MISSING else x for x in row] for row in self.correct.tolist()]
        accuracy = [[None if math.isnan(x) else x for x in row] for row in self.accuracy.tolist()]
        counts = {"tasks": self.tasks, "correct": correct, "total": self.total.tolist(), "accuracy": accuracy}
        return counts | {"transfer": self.transfer, "average": self.average, "last": self.last}

    @classmethod
    def from_json(cls, content: dict) -> "AccuracyMatrix":
        """What `to_json` wrote -> AccuracyMatrix."""
        try:
            correct = [[MISSING if x is None else x for x in row] for row in content["correct"]]
            return cls(content["tasks"], correct, content["total"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected tasks, total and correct, rows of counts: {error!r}") from error


def _integers(name: str, values, shape: tuple) -> Tensor:
    try:
        numbers = torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected counts, {error}") from error
    if numbers.dtype != torch.int64 or numbers.shape != shape:
        raise ValueError(f"{name}: expected whole numbers {shape}, found {numbers.dtype} {tuple(numbers.shape)}")
    return numbers


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean())
    return None if math.isnan(mean) else mean
