"""The toy world (datasets/toy) as data sets: ToyShapes, ToyColours, ... one for each entry of its table.

Pictures are drawn below DATASET.ROOT on first use and then read like any other data set.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from datasets.toy.build import world_digest, write_toy
from datasets.toy.world import COUNTS, WORLD

from .protocol import FewShotDataset


class ToyData(FewShotDataset):
    """Writes its pictures before it reads them. `counts`: pictures a class for train, val and test.

    Attribute `world_digest`: which toy world this is.
    """

    toy = None
    counts = COUNTS

    def __init__(self, cfg):
        super().__init__(cfg)
        self.world_digest = world_digest()

    def facts(self):
        """What results.json records of it."""
        return super().facts() | {"world_digest": self.world_digest}

    def locate(self, root):
        if root:
            write_toy(os.path.expanduser(root), self.toy, self.counts)
        return super().locate(root)


def declare(toy, base=ToyData, name="", **attributes):
    """The data set class of a `ToySet`, `name` or named like it."""
    templates = {"coop": toy.coop_template, "kgcoop": toy.template}
    declared = {"__module__": __name__, "toy": toy, "folders": (toy.folder,), "templates": templates,
                "split_file": f"split_zhou_{toy.name}.json"}  # fmt: skip
    return type(name or toy.name, (base,), declared | attributes)


for _toy in WORLD.values():
    DATASET_REGISTRY.register()(declare(_toy))
