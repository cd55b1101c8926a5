"""What is known of the public data sets: counts, fingerprints of the published split files, published draws, sources.

Counts of CoOp's sets follow its split files (Zhou et al., IJCV 2022), those of MTIL the official lists. The
draws are those of the index files that cross_modal_adaptation (Lin et al., CVPR 2023) publishes. Checksums of archives
are MD5, as torchvision has them. No link was tried when this was written.
"""

from typing import NamedTuple

from dassl.data.datasets import DATASET_REGISTRY


class Known(NamedTuple):
    """Classes, images of each part (0: no such part, or not known), and the digests of the split file's content and of
    the draws of seeds 1, 2 and 3 (`draws_digest` of check.py)."""

    classes: int
    train: int
    val: int
    test: int
    split: str = ""
    draws: str = ""


COOP = {
    "ImageNet": Known(1000, 1_281_167, 0, 50_000),
    "Caltech101": Known(100, 4128, 1649, 2465, "fcc639152982d051", "f07f4d749e701d36"),
    "OxfordPets": Known(37, 2944, 736, 3669, "ff3a92de79dd733d", "ace20258896c1c24"),
    "StanfordCars": Known(196, 6509, 1635, 8041, "19842b93a430b58d", "ee9dbfe9e7a930f7"),
    "OxfordFlowers": Known(102, 4093, 1633, 2463, "7708ceed2e2285da", "faa893d44b69a689"),
    "Food101": Known(101, 50_500, 20_200, 30_300, draws="c4e46dd356fe4215"),
    "FGVCAircraft": Known(100, 3334, 3333, 3333, draws="2b943b24c54a311d"),
    "SUN397": Known(397, 15_880, 3970, 19_850, draws="34fa90ec8c82ab9d"),
    "DescribableTextures": Known(47, 2820, 1128, 1692, "bf63546106e03e3d", "7c28b116cf139222"),
    "EuroSAT": Known(10, 13_500, 5400, 8100, "9252409af169c065", "8cd37c75f2144326"),
    "UCF101": Known(101, 7639, 1898, 3783, "189724adff7501e7", "336949a586ebb56f"),
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


MIRRORS = "huggingface.co/zhengli97/prompt_learning_dataset, huggingface.co/koorye/datasets"
NOT_MIRRORED = ("ImageNet", "ObjectNet", "MtilCIFAR100", "MtilMNIST")  # beginnings of names
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


def _official(name: str) -> list[str]:
    return next(links for names, links in OFFICIAL.items() if name in names).strip().splitlines()


def source_of(name: str) -> str:
    """Where images and lists can be had, for an error; "" for a set that is not public."""
    if name not in KNOWN:
        return ""
    return ", ".join(line.split("  ")[0] for line in _official(name) if "dead" not in line) or MIRRORS


def lines_of(name: str) -> list[str]:
    """What `links` prints of a data set: one line a link, then the split file and the mirrors."""
    data = DATASET_REGISTRY.get(name)
    lines = [f"{name}: below the data root in {' or '.join(data.folders)}", *(f"  {line}" for line in _official(name))]
    if data.split_file:
        lines.append(f"  {data.split_link.removeprefix('https://')}  ({data.split_file})")
    if not name.startswith(NOT_MIRRORED):
        lines.append(f"  mirrors: {MIRRORS} (a clone without Git LFS leaves pointer files)")
    return lines
