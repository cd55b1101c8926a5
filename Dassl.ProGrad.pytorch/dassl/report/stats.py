"""Means and population deviations (those that tools/parse_test_res.py prints) over seeds and data sets.

Values may be numbers or arrays of one shape (a curve of P points); everything works element by element.
"""

from typing import Any, NamedTuple

import numpy as np


class Summary(NamedTuple):
    """Mean, population deviation (None for a single value), number of seeds, and the results.json behind them.

    Without a number the mean is None and the summary is false.
    """

    mean: Any
    std: Any = None
    n: int = 0
    files: tuple = ()

    def __bool__(self):
        return self.mean is not None


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new); 0 where both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


def summarise(by_seed: dict) -> Summary:
    """{seed: value} -> Summary."""
    values = list(by_seed.values())
    if not values:
        return Summary(None)
    std = np.std(values, axis=0) if len(values) > 1 else None
    return Summary(np.mean(values, axis=0), std, len(values))


def mean_by_seed(by_dataset: dict) -> dict:
    """{data set: {seed: value}} -> {seed: mean over data sets}, for the seeds that every data set has."""
    seeds = set.intersection(*(set(by_seed) for by_seed in by_dataset.values())) if by_dataset else set()
    return {s: np.mean([by_seed[s] for by_seed in by_dataset.values()], axis=0) for s in sorted(seeds)}


def summarise_average(by_dataset: dict) -> Summary:
    """{data set: {seed: value}} -> Summary of the average over data sets, without a number if one of them is empty.

    The mean is that of the data sets' means, whatever their seeds. Deviation and n are those of the
    averages of single seeds, so they come from the seeds that all data sets share; n may be 0.
    """
    if not by_dataset or not all(by_dataset.values()):
        return Summary(None)
    mean = np.mean([np.mean(list(by_seed.values()), axis=0) for by_seed in by_dataset.values()], axis=0)
    return summarise(mean_by_seed(by_dataset))._replace(mean=mean)


def barrier(t, values, low_is_good: bool = True) -> float:
    """How far a curve on a straight line rises over the line between its own ends; 0 if it never does.

    max over t of L(t) - [(1 - s) L(start) + s L(end)], s from 0 to 1, as in Entezari et al. (arXiv 2110.06296);
    Frankle et al. (arXiv 1912.05671) subtract the mean of both ends, which calls unequal ends a barrier.

    t, values: (P,), ends included; low_is_good False: how far it falls below, as for accuracy.
    """
    t, values = np.asarray(t, dtype=float), np.asarray(values, dtype=float)
    s = (t - t[0]) / (t[-1] - t[0])
    rise = values - ((1 - s) * values[0] + s * values[-1])
    rise[[0, -1]] = 0.0  # exactly, whatever rounding leaves
    return float(np.max(rise if low_is_good else -rise)) + 0.0  # no -0.0
