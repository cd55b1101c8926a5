"""What is known of the public data sets: counts, fingerprints of the published split files, published draws, sources.

Counts of CoOp's sets follow its split files (Zhou et al., IJCV 2022), those of MTIL the official lists. The
draws are those of the index files that cross_modal_adaptation (Lin et al., CVPR 2023) publishes. Checksums of archives
are MD5, as torchvision has them. No link was tried when this was written.
"""

import re
from typing import NamedTuple

from dassl.data.datasets import DATASET_REGISTRY

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


MIRRORS = "huggingface.co/zhengli97/prompt_learning_dataset, huggingface.co/koorye/datasets"
MIRRORED = COOP.keys() - {"ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR", "ObjectNet"}
OFFICIAL = {  # sets of the same images: where these come from, a file or page a line
    ("ImageNet",): """
image-net.org  (registration; the validation images have to be sorted into class folders)
drive.google.com/file/d/1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF  (classnames.txt)""",
    ("Caltech101", "MtilCaltech101"): """
data.caltech.edu/records/mzrjq-6wc02  md5 3138e1922a9193bfa496528edbbc45d0\
  (caltech-101.zip, which holds 101_ObjectCategories.tar.gz)
vision.caltech.edu/Image_Datasets/Caltech101  (dead)""",
    ("OxfordPets", "MtilOxfordPet"): """
www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz  md5 5c4f3ee8e5d25df40f4fd59a7f44e54c
www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz  md5 95a8c909bbe2e81eed6a22bccdf3f68f""",
    ("StanfordCars", "MtilStanfordCars"): """
ai.stanford.edu/~jkrause/car196/cars_train.tgz  (dead since 2023, so is cars_test.tgz)
ai.stanford.edu/~jkrause/cars/car_devkit.tgz  (dead since 2023)
github.com/pytorch/vision/issues/7545  (how others put it together)
kaggle.com/jessicali9530/stanford-cars-dataset  (nests cars_train/cars_train; other file names)""",
    ("OxfordFlowers", "MtilFlowers"): """
www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz  md5 52808999861908f626f3c1f4e79d11fa
www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat  md5 e0620be6f572b9609742df49c70aed4d
www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat  md5 a5357ecc9cb78c4bef273ce3793fc85c
drive.google.com/file/d/1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0  (cat_to_name.json)""",
    ("Food101", "MtilFood"): """
data.vision.ee.ethz.ch/cvl/food-101.tar.gz  md5 85eeb15f3717b99a5da872d97d918f87""",
    ("FGVCAircraft", "MtilAircraft"): """
www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz\
  (CoOp: its folder data, renamed fgvc_aircraft; MTIL: as it unpacks)""",
    ("SUN397", "MtilSUN397"): """
vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz  md5 8ca2778205c41d23104230ba66911c7a\
  (37 GB; dead since 2025, so is Partitions.zip; use a mirror)""",
    ("DescribableTextures", "MtilDTD"): """
www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz  md5 fff73e5086ae6bdbea199a49dfb8a4c1""",
    ("EuroSAT", "MtilEuroSAT"): """
huggingface.co/datasets/torchgeo/eurosat  md5 c8fa014336c82ac7804f0398fcb19387  (EuroSAT.zip)
madm.dfki.de/files/sentinel/EuroSAT.zip  (expired certificate)""",
    ("UCF101",): """
drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O\
  (UCF-101-midframes.zip; beyond its quota Drive sends a page, which is then saved under that name)""",
    ("ImageNetV2",): """
huggingface.co/datasets/vaishaal/ImageNetV2  (imagenetv2-matched-frequency.tar.gz)
s3-us-west-2.amazonaws.com/imagenetv2public  (dead (403))""",
    ("ImageNetSketch",): """
github.com/HaohanWang/ImageNet-Sketch
drive.google.com/file/d/1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA  (unpacks to sketch/)""",
    ("ImageNetA",): """
github.com/hendrycks/natural-adv-examples
people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar""",
    ("ImageNetR",): """
github.com/hendrycks/imagenet-r
people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar""",
    ("ObjectNet",): """
objectnet.dev  (classes.json is this project's own file)""",
    ("MtilCIFAR100",): """
www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz  md5 eb9058c3a382ffc7106e4002c42a8d85""",
    ("MtilMNIST",): """
ossci-datasets.s3.amazonaws.com/mnist/  (four .gz files)""",
}


def lines_of(name: str) -> list[str]:
    """What `links` prints of a data set: one line a link, then the split file and the mirrors."""
    data = DATASET_REGISTRY.get(name)
    lines = [f"{name}: below the data root in {' or '.join(data.folders)}"]
    names, links = next(pair for pair in OFFICIAL.items() if name in pair[0])
    lines += [f"  {link}" for link in links.strip().split("\n")]
    if data.split_file:
        lines.append(f"  {data.split_link.removeprefix('https://')}  ({data.split_file})")
    if MIRRORED.intersection(names):
        lines.append(f"  mirrors: {MIRRORS} (a clone without Git LFS leaves pointer files)")
    return lines
