"""The toy world (datasets/toy) as data sets. Images are drawn below DATASET.ROOT on first use, then read like any set.

ToyShapes, ToyColours, ...  one for each entry of the world's table
MtilToyShapes, ...          eight of them as a stream of tasks; they read the images of ToyShapes, ...
ToyObjectsSketch, ...       ToyObjects in four styles that it does not have, each with a second mild trouble. They play
                            ImageNet-V2, -Sketch, -A, -R and ObjectNet where a model trained on ToyObjects is tested
ToyDG, ToyDA                eight shapes in four styles, the domains, for domain generalisation and adaptation
ToySSL                      eight textures, a few images of each with labels
"""

import os
from dataclasses import replace

from dassl.data import group_indices, subsample_classes
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.toy.world import COUNTS, WORLD, ToySet, world_digest, write_toy

from .base import FewLabels, FewShotDataset
from .mtil import MtilDataset
from .readers import Lists, split_json


class ToyData(FewShotDataset):
    """Writes its images before it reads them. `counts`: images a class for train, val and test."""

    toy = None
    counts = COUNTS
    peers = tuple(toy.folder for toy in WORLD.values() if toy.base_to_new)

    def metadata(self) -> dict:
        """What results.json records of it: which toy world this is."""
        return super().metadata() | {"world_digest": world_digest(self.dataset_dir)}

    def locate(self, root: str) -> str:
        if root:
            write_toy(os.path.expanduser(root), self.toy, self.counts)
        return super().locate(root)


def declare(toy: ToySet, base: type = ToyData, name: str = "", **attributes) -> type:
    """The data set class of a `ToySet`, `name` or named like it."""
    templates = FewShotDataset.templates | {"kgcoop": toy.template}
    declared = {"__module__": __name__, "toy": toy, "folders": (toy.folder,), "templates": templates,
                "split_file": f"split_zhou_{toy.name}.json"}  # fmt: skip
    return type(name or toy.name, (base,), declared | attributes)


# tasks of a stream

TASKS = ("ToyColours", "ToyCounts", "ToyDigits", "ToyLetters", "ToyObjects", "ToyScenes", "ToyShapes", "ToyTextures")
TEST_IMAGES = 200


class MtilToy(MtilDataset, ToyData):
    """A toy data set under the protocol of a task: training on the train and val images, test on TEST_IMAGES, as
    many of each class as of any other, give or take one."""

    def read(self) -> Lists:
        train, val, test = super().read()
        return train + val, [], first_of_each(test, TEST_IMAGES)


def first_of_each(items: list[Datum], count: int) -> list[Datum]:
    """The first `count` items (all, if there are fewer), spread evenly over the classes; the order stays.

    Where classes do not divide `count`, the first ones give one more.
    """
    groups = list(group_indices(item.label for item in items).values())
    share, more = divmod(count, len(groups))
    chosen = [i for place, group in enumerate(groups) for i in group[: share + (place < more)]]
    return [items[i] for i in sorted(chosen)]


# shifted test sets: the classes of ToyObjects. They have train and val lists too, but are only ever tested on. Their
# strengths were chosen before any training was looked at: the multiple of 0.05 whose zero-shot accuracy on the 400
# validation images is nearest 35 %. Chance is 5 %, ToyObjects itself has 45.0 %, and they have 33.0, 36.0, 31.0, 35.0.

ID = WORLD["ToyObjects"]
SHIFTS = {
    f"ToyObjects{kind}": replace(
        ID, name=f"ToyObjects{kind}", folder=f"toy_objects_{kind.lower()}", styles=styles, strength=strength,
        base_to_new=False)
    for kind, styles, strength in (
        ("Sketch", ("sketch", "noise"), 0.7),
        ("Noise", ("fade", "noise"), 0.65),
        ("Dark", ("dark", "noise"), 0.6),
        ("Rotation", ("rotation", "blur"), 0.9),
    )
}  # fmt: skip

# domains

_SHAPES = ("circle", "cross", "diamond", "heart", "moon", "square", "star", "triangle")
DOMAINS = {
    style: ToySet(f"ToyDG{style.capitalize()}", style, {shape: ("thing", {"shape": shape}) for shape in _SHAPES},
                  (style,) if strength else (), strength, "a photo of a {}.", base_to_new=False)
    for style, strength in (("clean", 0.0), ("noise", 0.5), ("pixelate", 0.9), ("sketch", 0.9))
}  # fmt: skip


@DATASET_REGISTRY.register()
class ToyDG(ToyData):
    """Training and validation images of DATASET.SOURCE_DOMAINS, test images of DATASET.TARGET_DOMAINS.
    ROOT/toy_dg/<domain>/ holds one domain."""

    domains = list(DOMAINS)
    folders, images = ("toy_dg",), ("",)
    counts = (20, 5, 20)

    def __init__(self, cfg):
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        self.source, self.target = list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)
        super().__init__(cfg)

    def locate(self, root: str) -> str:
        if root:
            folder = os.path.join(os.path.expanduser(root), self.folders[0])
            for name in {*self.source, *self.target}:
                write_toy(folder, DOMAINS[name], self.counts)
        return super(ToyData, self).locate(root)

    def read(self) -> Lists:
        source, target = ([self.read_domain(name) for name in names] for names in (self.source, self.target))
        self.target_train = sum((train for train, _, _ in target), [])
        return (
            sum((train for train, _, _ in source), []),
            sum((val for _, val, _ in source), []),
            sum((test for _, _, test in target), []),
        )

    def read_domain(self, name: str) -> Lists:
        """(train, val, test) of one domain; a Datum's domain is the place of its name in `domains`."""
        folder = os.path.join(self.dataset_dir, name)
        lists = split_json(f"{folder}/split_zhou_{DOMAINS[name].name}.json", f"{folder}/images")
        number = self.domains.index(name)
        return tuple([Datum.listed(i.impath, i.label, number, i.classname) for i in items] for items in lists)

    def metadata(self) -> dict:
        """What results.json records of it."""
        where = {"source_domains": self.source, "target_domains": self.target}
        return super().metadata() | where | {"data_seen": f"the domains {', '.join(self.source)}"}


@DATASET_REGISTRY.register()
class ToyDA(ToyDG):
    """ToyDG with the target domains' training images as unlabelled ones."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._train_u = subsample_classes(self.target_train, subset=cfg.DATASET.SUBSAMPLE_CLASSES)

    def metadata(self) -> dict:
        """What results.json records of it."""
        facts = super().metadata()
        return facts | {"data_seen": f"{facts['data_seen']}; without labels {', '.join(self.target)}"}


# few labels

_TEXTURES = ("brick", "dotted", "grainy", "plain", "checkered", "ringed", "shaded", "striped")
_FEW = {name: ("surface", {"pattern": name}) for name in _TEXTURES}


class ToyFewLabels(FewLabels, ToyData):
    """The training images, of which FewLabels leaves some their labels."""

    counts = (40, 5, 20)


for _class in (
    *map(declare, [*WORLD.values(), *SHIFTS.values()]),
    *(declare(WORLD[_n], MtilToy, f"Mtil{_n}", task=_n, prompts=(WORLD[_n].template,)) for _n in TASKS),
    declare(ToySet("ToySSL", "toy_ssl", _FEW, (), 0.0, "{} texture.", base_to_new=False), ToyFewLabels),
):
    DATASET_REGISTRY.register()(_class)
