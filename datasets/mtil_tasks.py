"""The eleven tasks of MTIL: MtilAircraft ... MtilSUN397, in the folders that torchvision's data sets expect.

Official training and test lists, or a seeded 80/20 split of all images (Caltech101, EuroSAT, SUN397). That of
SUN397 follows the sorted paths; the published one follows the order of a file system and is not known.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY

from . import mtil, mtil_words
from .arrays import cifar100, mnist
from .readers import Lists, class_folders, folder_images, variant_lists


@DATASET_REGISTRY.register()
class MtilAircraft(mtil.MtilDataset):
    """FGVC Aircraft (Maji et al., 2013): the official training and test lists of variants."""

    task = "Aircraft"
    prompts = mtil_words.AIRCRAFT_PROMPTS
    folders = ("fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b", "fgvc_aircraft")
    lists = staticmethod(variant_lists)


@DATASET_REGISTRY.register()
class MtilCaltech101(mtil.MtilDataset):
    """Caltech-101 (Fei-Fei et al., 2004): 101 classes, both kinds of faces, without background."""

    task = "Caltech101"
    prompts = mtil_words.THING_PROMPTS
    folders = ("caltech101", "caltech-101")
    images = ("101_ObjectCategories",)

    def read(self) -> Lists:
        folders = [name for name in class_folders(self.image_dir) if name != "BACKGROUND_Google"]
        names = {name: mtil_words.CALTECH_NAMES.get(name, mtil.words(name)) for name in folders}
        return mtil.seeded_split(folder_images(self.image_dir, folders, names))


@DATASET_REGISTRY.register()
class MtilCIFAR100(mtil.MtilDataset):
    """CIFAR-100 (Krizhevsky, 2009), Python version."""

    task = "CIFAR100"
    prompts = mtil_words.PHOTO_PROMPTS
    folders = ("cifar-100-python", "cifar100/cifar-100-python")
    images = ("",)

    def read(self) -> Lists:
        return cifar100(self.dataset_dir)


@DATASET_REGISTRY.register()
class MtilDTD(mtil.MtilDataset):
    """Describable Textures (Cimpoi et al., CVPR 2014): partition 1."""

    task = "DTD"
    prompts = mtil_words.TEXTURE_PROMPTS
    folders = ("dtd/dtd", "dtd")
    lists = staticmethod(mtil.texture_lists)


@DATASET_REGISTRY.register()
class MtilEuroSAT(mtil.MtilDataset):
    """EuroSAT (Helber et al., 2019), the RGB images."""

    task = "EuroSAT"
    prompts = mtil_words.SATELLITE_PROMPTS
    folders = ("eurosat", "EuroSAT")
    images = ("2750",)

    def read(self) -> Lists:
        names = mtil_words.EUROSAT_NAMES
        return mtil.seeded_split(folder_images(self.image_dir, class_folders(self.image_dir, names, "EuroSAT"), names))


@DATASET_REGISTRY.register()
class MtilFlowers(mtil.MtilDataset):
    """Oxford Flowers 102 (Nilsback and Zisserman, 2008): 10 training images a class."""

    task = "Flowers"
    prompts = ("a photo of a {}, a type of flower.",)
    folders = ("flowers-102", "oxford_flowers")
    images = ("jpg",)
    lists = staticmethod(mtil.flower_lists)


@DATASET_REGISTRY.register()
class MtilFood(mtil.MtilDataset):
    """Food-101 (Bossard et al., ECCV 2014): 750 training and 250 test images a class."""

    task = "Food"
    prompts = ("a photo of a {}, a type of food.",)
    folders = ("food-101", "food101")
    lists = staticmethod(mtil.food_lists)


@DATASET_REGISTRY.register()
class MtilMNIST(mtil.MtilDataset):
    """MNIST (LeCun et al., 1998)."""

    task = "MNIST"
    prompts = ('a photo of the number: "{}".',)
    folders = ("MNIST/raw", "mnist/raw", "MNIST", "mnist")
    images = ("",)

    def read(self) -> Lists:
        return mnist(self.dataset_dir, mtil_words.DIGIT_NAMES)


@DATASET_REGISTRY.register()
class MtilOxfordPet(mtil.MtilDataset):
    """Oxford-IIIT Pets (Parkhi et al., CVPR 2012)."""

    task = "OxfordPet"
    prompts = ("a photo of a {}, a type of pet.",)
    folders = ("oxford-iiit-pet", "oxford_pets")
    lists = staticmethod(mtil.pet_lists)


@DATASET_REGISTRY.register()
class MtilStanfordCars(mtil.MtilDataset):
    """Stanford Cars (Krause et al., 2013); names end with the year."""

    task = "StanfordCars"
    prompts = mtil_words.CAR_PROMPTS
    folders = ("stanford_cars",)
    images = ("",)
    lists = staticmethod(mtil.car_lists)


@DATASET_REGISTRY.register()
class MtilSUN397(mtil.MtilDataset):
    """SUN397 (Xiao et al., CVPR 2010): all 108,754 images."""

    task = "SUN397"
    prompts = mtil_words.PLACE_PROMPTS
    folders = ("SUN397", "sun397")
    images = ("SUN397", "")  # CoOp's layout has all of it one folder further down

    def read(self) -> Lists:
        return mtil.seeded_split(mtil.place_folders(self.image_dir, os.path.join(self.image_dir, "ClassName.txt")))
