"""Where the public data sets come from: archives with checksums, split files, and links known to be dead.

Checksums are MD5, as torchvision has them. No link was tried when this was written.
"""

from dassl.data.datasets import DATASET_REGISTRY

from .known import COOP

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
