"""Eight shapes in four styles, the domains: ToyDG for domain generalisation, ToyDA for domain adaptation.

Trained on the domains DATASET.SOURCE_DOMAINS, tested on DATASET.TARGET_DOMAINS. ToyDA also gives the target's
training pictures, as unlabelled ones. ROOT/toy_dg/<domain>/ holds one domain, drawn on first use.
"""

import os
from dataclasses import dataclass, field

from dassl.data import subsample_classes
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.toy.build import write_toy
from datasets.toy.world import ToySet

from .readers import Lists, split_json
from .toy_world import ToyData

SHAPES = ("circle", "cross", "diamond", "heart", "moon", "square", "star", "triangle")
STRENGTHS = {"clean": 0.0, "noise": 0.5, "pixelate": 0.9, "sketch": 0.9}


@dataclass(frozen=True)
class Shapes(ToySet):
    """A `ToySet` of SHAPES with its own strength."""

    draws: dict = field(default_factory=lambda: {shape: ("thing", {"shape": shape}) for shape in SHAPES})
    styles: tuple = ()
    template: str = "a photo of a {}."
    base_to_new: bool = False
    strength: float = 0.0


def domain(style, strength):
    """The shapes in one style, in a folder of its name."""
    styles = (style,) if strength else ()
    return Shapes(f"ToyDG{style.capitalize()}", style, styles=styles, strength=strength)


DOMAINS = {style: domain(style, strength) for style, strength in STRENGTHS.items()}


@DATASET_REGISTRY.register()
class ToyDG(ToyData):
    """Training and validation pictures of the source domains, test pictures of the target domains."""

    domains = list(DOMAINS)
    folders, images = ("toy_dg",), ("",)
    counts = (20, 5, 20)

    def __init__(self, cfg):
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        self.source, self.target = list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)
        super().__init__(cfg)

    def locate(self, root):
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

    def facts(self):
        """What results.json records of it."""
        where = {"source_domains": self.source, "target_domains": self.target}
        return super().facts() | where | {"data_seen": f"the domains {', '.join(self.source)}"}


@DATASET_REGISTRY.register()
class ToyDA(ToyDG):
    """ToyDG with the target domains' training pictures as unlabelled ones."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._train_u = subsample_classes(self.target_train, subset=cfg.DATASET.SUBSAMPLE_CLASSES)

    def facts(self):
        """What results.json records of it."""
        facts = super().facts()
        return facts | {"data_seen": f"{facts['data_seen']}; without labels {', '.join(self.target)}"}
