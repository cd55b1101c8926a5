"""ToySSL: eight textures of the toy world, a few pictures of each with labels."""

from dataclasses import dataclass

from dassl.data.datasets import DATASET_REGISTRY
from datasets.toy.world import ToySet

from .few_labels import FewLabels
from .toy_world import ToyData, declare

TEXTURES = ("brick", "dotted", "grainy", "plain", "checkered", "ringed", "shaded", "striped")


@dataclass(frozen=True)
class Textures(ToySet):
    """A `ToySet` without a style."""

    strength: float = 0.0


class ToyFewLabels(FewLabels, ToyData):
    """The training pictures, of which FewLabels leaves some their labels."""

    counts = (40, 5, 20)


_DRAWS = {name: ("surface", {"pattern": name}) for name in TEXTURES}
_TOY = Textures("ToySSL", "toy_ssl", _DRAWS, (), "{} texture.", base_to_new=False)
DATASET_REGISTRY.register()(declare(_TOY, ToyFewLabels))
