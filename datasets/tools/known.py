"""What is known of the public data sets: counts, fingerprints of the published split files, published draws.

Counts of CoOp's sets follow its split files (Zhou et al., IJCV 2022), those of MTIL the official lists. The
draws are those of the index files that cross_modal_adaptation (Lin et al., CVPR 2023) publishes.
"""

import re
from typing import NamedTuple

DRAW_SHOTS = 16


class Known(NamedTuple):
    """Classes, images of each part (0: no such part, or not known), and the digest of the split file's content."""

    classes: int
    train: int
    val: int
    test: int
    split: str = ""


COOP = {
    "ImageNet": Known(1000, 1_281_167, 0, 50_000),
    "Caltech101": Known(100, 4128, 1649, 2465, "fcc639152982d051"),
    "OxfordPets": Known(37, 2944, 736, 3669, "ff3a92de79dd733d"),
    "StanfordCars": Known(196, 6509, 1635, 8041, "19842b93a430b58d"),
    "OxfordFlowers": Known(102, 4093, 1633, 2463, "7708ceed2e2285da"),
    "Food101": Known(101, 50_500, 20_200, 30_300),
    "FGVCAircraft": Known(100, 3334, 3333, 3333),
    "SUN397": Known(397, 15_880, 3970, 19_850),
    "DescribableTextures": Known(47, 2820, 1128, 1692, "bf63546106e03e3d"),
    "EuroSAT": Known(10, 13_500, 5400, 8100, "9252409af169c065"),
    "UCF101": Known(101, 7639, 1898, 3783, "189724adff7501e7"),
    "ImageNetV2": Known(1000, 0, 0, 10_000),
    "ImageNetSketch": Known(1000, 0, 0, 50_889),
    "ImageNetA": Known(200, 0, 0, 7500),
    "ImageNetR": Known(200, 0, 0, 30_000),
    "ObjectNet": Known(113, 0, 0, 0),
}
MTIL = {
    "MtilAircraft": Known(100, 3334, 0, 3333),
    "MtilCaltech101": Known(101, 6941, 0, 1736),
    "MtilCIFAR100": Known(100, 50_000, 0, 10_000),
    "MtilDTD": Known(47, 1880, 0, 1880),
    "MtilEuroSAT": Known(10, 21_600, 0, 5400),
    "MtilFlowers": Known(102, 1020, 0, 6149),
    "MtilFood": Known(101, 75_750, 0, 25_250),
    "MtilMNIST": Known(10, 60_000, 0, 10_000),
    "MtilOxfordPet": Known(37, 3680, 0, 3669),
    "MtilStanfordCars": Known(196, 8144, 0, 8041),
    "MtilSUN397": Known(397, 87_003, 0, 21_751),
}
KNOWN = COOP | MTIL
PROTOCOLS = {"coop": COOP, "mtil": MTIL, "all": KNOWN}
UNITS = {"classes": "classes", "train": "training images", "val": "validation images", "test": "test images"}


def not_published(name: str, counts: dict[str, int], digest: str, split_file: str) -> list[str]:
    """What is not as published in the lists of a public set: counts, by the names of Known, and content, if any."""
    if name not in KNOWN:
        return []
    known = KNOWN[name]
    sizes = [(counts[part], what, getattr(known, part)) for part, what in UNITS.items()]
    wrong = ", ".join(f"{size:,} {what} instead of {count:,}" for size, what, count in sizes if count not in (0, size))
    content = f"{split_file} is not the published one (content {digest}, expected {known.split})"
    return [line for line in (wrong, content if digest and known.split not in ("", digest) else "") if line]


# For seeds 1, 2 and 3, a line each: SHA-256 (16 digits) of the relative paths of 16 training and of 4
# validation images a class, joined by line feeds.
_DRAWS = """
Caltech101
  e60a836bd33cbba3 53555d3fce94587d
  62be9f804c23dea9 0ac3f0ace7d75ed1
  8c465c68bff43c6e bf481ac8e217d48d
OxfordPets
  711e62ca7ba4bf69 b75fc02100f37a51
  3ecc09fd23ef3845 6d954be12352e3e9
  45933e694768aaab fb9f327e6bdd6bb5
StanfordCars
  f7d56096c7921e7a edeb0808f53c4619
  c8392ec0f0d4a698 831f6ef98ba7c20d
  d5d533f8b5c5caf8 38ae4c6127e51931
OxfordFlowers
  ea366f552e24a82b 3a88b427e7b187eb
  3966d8c7701959cc c14f6cff29a850b7
  d027071e2f771db1 c05b4617c2ae8656
Food101
  8bcab0ea1c2dde7d 0c299214865cccac
  f898246681fe85b9 df956a77f86bcf20
  3ef34fafd55ae98e 50764b9eb7fc1a6c
FGVCAircraft
  27de4feb97213124 fd4231e9d5e2b962
  9c8b884b41aee7de b5249536f929765e
  2e8971273aa395bf df9d2d68cba6dffb
SUN397
  4f0fcf0ddbbe248d e1255316553e6966
  f2f3a27dc8e89744 e80ed9243257ceca
  8a3a0e667f28c472 1acfa85b2b868383
DescribableTextures
  daf3b28e531fbc4b 9ef81bd9b8f31885
  a34259006a2af32a 82e7c16834cbe39f
  d4a9dc52a372cccc 17e14a57620535f1
EuroSAT
  ad260707da9107f1 f171ab42c4e4c55c
  212e6c8813227418 6741b81e637a61cd
  9dad8ac018414f09 e428abf9f2933efb
UCF101
  b88bd6d2db741f87 6499ec117e625487
  a510bb0001f043a5 6e94bbb892da9b1f
  6bfebd6fbe0806ac f08db7c0e2d6981c
"""


def published_draws() -> dict[str, list[list[str]]]:
    """{data set: [digests of training and validation for each seed]}."""
    sets = [block.splitlines() for block in re.split(r"\n(?=\S)", _DRAWS.strip())]
    return {name: [line.split() for line in lines] for name, *lines in sets}
