"""Orders of a stream, by the names of its tasks' yaml files: I and II of MTIL (arXiv 2303.06628), `toy`, or any
datasets of configs/datasets/mtil, as a,b,c."""

import random
from collections.abc import Sequence
from math import factorial
from pathlib import Path

from dassl.utils import UserError, check_availability

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "configs/datasets/mtil"
_ORDERS = {
    "I": "aircraft caltech101 cifar100 dtd eurosat flowers food mnist oxford_pet stanford_cars sun397",
    "II": "stanford_cars food mnist oxford_pet flowers sun397 aircraft caltech101 dtd eurosat cifar100",
    "toy": "toy_colours toy_counts toy_digits toy_letters toy_objects toy_scenes toy_shapes toy_textures",
}
ORDERS = {name: tuple(tasks.split()) for name, tasks in _ORDERS.items()}


def tasks_of(order: str) -> tuple[str, ...]:
    """The datasets of an order, first to last. UserError, with the nearest name, for one that is unknown."""
    if order in ORDERS:
        return ORDERS[order]
    names, available = tuple(order.split(",")), sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml"))
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
    draw, orders = random.Random(seed), {}
    while len(orders) < min(count, factorial(len(names))):
        orders[tuple(draw.sample(list(names), len(names)))] = None
    return list(orders)
