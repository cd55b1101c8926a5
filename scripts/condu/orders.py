"""Orders of a stream: I and II of MTIL, `toy`, or any data sets of configs/datasets/mtil, as a,b,c."""

import random
from collections.abc import Sequence
from math import factorial
from pathlib import Path

from condu.orders import ORDERS
from dassl.utils import UserError, check_availability

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "configs/datasets/mtil"


def known() -> list[str]:
    """Data sets with an MTIL form: names of their yaml files."""
    return sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml"))


def tasks_of(order: str) -> tuple[str, ...]:
    """The data sets of an order, first to last. UserError, with the nearest name, for one that is unknown."""
    if order in ORDERS:
        return ORDERS[order]
    names, available = tuple(order.split(",")), known()
    for name in names:
        check_availability(name, [*ORDERS, *available] if len(names) == 1 else available, "A data set of ORDER")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"ORDER {order}: {', '.join(twice)} comes twice; a task is learned once")
    return names


def label_of(order: str) -> str:
    """What folders and tables call an order."""
    return order.replace(",", "-")


def random_orders(names: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """`count` different orders, or all there are; the first ones do not depend on the count."""
    draw, found = random.Random(seed), {}
    while len(found) < min(count, factorial(len(names))):
        found[tuple(draw.sample(list(names), len(names)))] = None
    return list(found)
