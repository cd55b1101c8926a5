"""Where the public data sets come from: archives with checksums, split files, and links known to be dead.

Checksums are MD5, as torchvision has them. No link was tried when this was written.
"""

from typing import NamedTuple

from dassl.data.datasets import DATASET_REGISTRY

from .known import COOP

MIRRORS = (
    "huggingface.co/zhengli97/prompt_learning_dataset",
    "huggingface.co/koorye/datasets",
)


class Link(NamedTuple):
    """A file or page; `md5` of the file; `note`: what to know of it."""

    where: str
    md5: str = ""
    note: str = ""


DEAD = "dead"
MIRRORED = COOP.keys() - {"ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR", "ObjectNet"}
OFFICIAL = {  # sets of the same images: where these come from
    ("ImageNet",): (
        Link("image-net.org", note="registration; the validation images have to be sorted into class folders"),
        Link("drive.google.com/file/d/1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", note="classnames.txt"),
    ),
    ("Caltech101", "MtilCaltech101"): (
        Link(
            "data.caltech.edu/records/mzrjq-6wc02",
            "3138e1922a9193bfa496528edbbc45d0",
            "caltech-101.zip, which holds 101_ObjectCategories.tar.gz",
        ),
        Link("vision.caltech.edu/Image_Datasets/Caltech101", note=DEAD),
    ),
    ("OxfordPets", "MtilOxfordPet"): (
        Link("www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        Link("www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
    ),
    ("StanfordCars", "MtilStanfordCars"): (
        Link("ai.stanford.edu/~jkrause/car196/cars_train.tgz", note=f"{DEAD} since 2023, so is cars_test.tgz"),
        Link("ai.stanford.edu/~jkrause/cars/car_devkit.tgz", note=f"{DEAD} since 2023"),
        Link("github.com/pytorch/vision/issues/7545", note="how others put it together"),
        Link("kaggle.com/jessicali9530/stanford-cars-dataset", note="nests cars_train/cars_train; other file names"),
    ),
    ("OxfordFlowers", "MtilFlowers"): (
        Link("www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
        Link("www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        Link("www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        Link("drive.google.com/file/d/1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", note="cat_to_name.json"),
    ),
    ("Food101", "MtilFood"): (Link("data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
    ("FGVCAircraft", "MtilAircraft"): (
        Link(
            "www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            note="CoOp: its folder data, renamed fgvc_aircraft; MTIL: as it unpacks",
        ),
    ),
    ("SUN397", "MtilSUN397"): (
        Link(
            "vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            "8ca2778205c41d23104230ba66911c7a",
            f"37 GB; {DEAD} since 2025, so is Partitions.zip; use a mirror",
        ),
    ),
    ("DescribableTextures", "MtilDTD"): (
        Link("www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1"),
    ),
    ("EuroSAT", "MtilEuroSAT"): (
        Link("huggingface.co/datasets/torchgeo/eurosat", "c8fa014336c82ac7804f0398fcb19387", "EuroSAT.zip"),
        Link("madm.dfki.de/files/sentinel/EuroSAT.zip", note="expired certificate"),
    ),
    ("UCF101",): (
        Link(
            "drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
            note="UCF-101-midframes.zip; beyond its quota Drive sends a page, which is then saved under that name",
        ),
    ),
    ("ImageNetV2",): (
        Link("huggingface.co/datasets/vaishaal/ImageNetV2", note="imagenetv2-matched-frequency.tar.gz"),
        Link("s3-us-west-2.amazonaws.com/imagenetv2public", note=f"{DEAD} (403)"),
    ),
    ("ImageNetSketch",): (
        Link("github.com/HaohanWang/ImageNet-Sketch"),
        Link("drive.google.com/file/d/1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", note="unpacks to sketch/"),
    ),
    ("ImageNetA",): (
        Link("github.com/hendrycks/natural-adv-examples"),
        Link("people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"),
    ),
    ("ImageNetR",): (
        Link("github.com/hendrycks/imagenet-r"),
        Link("people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
    ),
    ("ObjectNet",): (Link("objectnet.dev", note="classes.json is this project's own file"),),
    ("MtilCIFAR100",): (Link("www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    ("MtilMNIST",): (Link("ossci-datasets.s3.amazonaws.com/mnist/", note="four .gz files"),),
}


def lines_of(name: str) -> list[str]:
    """What `links` prints of a data set: one line a link, then the split file and the mirrors."""
    data = DATASET_REGISTRY.get(name)
    lines = [f"{name}: below the data root in {' or '.join(data.folders)}"]
    names, links = next(pair for pair in OFFICIAL.items() if name in pair[0])
    for link in links:
        md5 = f"  md5 {link.md5}" if link.md5 else ""
        lines.append(f"  {link.where}{md5}{f'  ({link.note})' if link.note else ''}")
    if data.split_file:
        lines.append(f"  {data.split_link.removeprefix('https://')}  ({data.split_file})")
    if MIRRORED.intersection(names):
        lines.append(f"  mirrors: {', '.join(MIRRORS)} (a clone without Git LFS leaves pointer files)")
    return lines
