"""The ways to merge, by name: their values, what a search tries, and how many parents each takes. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# words in place of weights to start from, and what of LoRA is merged
ZERO_SHOT, START, ZEROS = "zero-shot", "start", "zeros"
SPACES = ("factors", "product")
TENTHS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Method:
    """One way to merge; `merge` in methods.py runs it."""

    title: str
    values: Mapping[str, object] = field(default_factory=dict)  # with their defaults
    sweep: Mapping[str, Sequence] = field(default_factory=dict)  # what a search tries
    needs_base: bool = True
    most: int | None = None  # parents
    least: int = 1


METHODS = {
    "average": Method("Average", {"weights": None}, needs_base=False, least=2),
    "wise_ft": Method("WiSE-FT", {"alpha": 0.5}, {"alpha": TENTHS}, most=1),
    "task_arithmetic": Method("Task arithmetic", {"scale": 0.4}, {"scale": TENTHS[1:]}),
    "ties": Method("TIES", {"density": 0.2, "scale": 1.0}, {"density": (0.1, 0.2, 0.5), "scale": (0.3, 0.5, 0.7, 1.0)}),
    "dare": Method(
        "DARE",
        {"density": 0.1, "scale": 1.0, "seed": 1, "then": "average"},
        {"density": (0.1, 0.3, 0.5, 0.9), "scale": (0.3, 0.5, 0.7, 1.0)},
    ),
    "slerp": Method("SLERP", {"t": 0.5, "per": "whole"}, {"t": TENTHS}, needs_base=False, least=2, most=2),
    "emr": Method("EMR", {"task": 1}),
}


def check_method(name: str, count: int, values: Mapping[str, object]) -> Method:
    """The method of that name, if it takes so many parents and these values."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}, expected one of {', '.join(METHODS)}")
    method = METHODS[name]
    for value in values:
        if value not in method.values:
            raise ValueError(f"{name} has no value {value!r}; it has {', '.join(method.values)}")
    if count < method.least or (method.most is not None and count > method.most):
        most = "or more" if method.most is None else "" if method.most == method.least else f"to {method.most}"
        raise ValueError(f"{name} merges {' '.join(f'{method.least} {most}'.split())} parents, given {count}")
    return method
