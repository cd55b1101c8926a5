"""Eight data sets of the toy world as a stream of tasks: MtilToyColours, MtilToyCounts, ...

They read the pictures that ToyColours, ToyCounts, ... draw, so nothing is drawn twice. Training is on the
train and val pictures; the test is on 200 pictures, as many of each class as of any other, give or take one.
"""

from dassl.data import group_indices
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.toy.world import WORLD
from datasets.toy_world import ToyData, declare

from .mtil import MtilDataset
from .readers import Lists

TASKS = (
    "ToyColours",
    "ToyCounts",
    "ToyDigits",
    "ToyLetters",
    "ToyObjects",
    "ToyScenes",
    "ToyShapes",
    "ToyTextures",
)
TEST_PICTURES = 200


class MtilToy(MtilDataset, ToyData):
    """A toy data set under the protocol of a task."""

    def read(self) -> Lists:
        train, val, test = super().read()
        return train + val, [], first_of_each(test, TEST_PICTURES)


def first_of_each(items: list[Datum], count: int) -> list[Datum]:
    """The first `count` items (all, if there are fewer), spread evenly over the classes; the order stays.

    Where classes do not divide `count`, the first ones give one more.
    """
    groups = list(group_indices(item.label for item in items).values())
    share, more = divmod(count, len(groups))
    chosen = [i for place, group in enumerate(groups) for i in group[: share + (place < more)]]
    return [items[i] for i in sorted(chosen)]


for _name in TASKS:
    _toy = WORLD[_name]
    DATASET_REGISTRY.register()(
        declare(_toy, MtilToy, f"Mtil{_name}", task=_name, prompts=(_toy.template,)),
    )
