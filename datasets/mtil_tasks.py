"""The eleven tasks of MTIL: MtilAircraft ... MtilSUN397, in the folders that torchvision's data sets expect.

Official training and test lists, or a seeded 80/20 split of all images (Caltech101, EuroSAT, SUN397). That of
SUN397 follows the sorted paths; the published one follows the order of a file system and is not known.
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile

from . import mtil_words as words
from .arrays import cifar100, mnist
from .mtil import (
    MtilDataset,
    car_lists,
    flower_lists,
    food_lists,
    pet_lists,
    place_folders,
    seeded_split,
    texture_lists,
)
from .mtil import words as plain
from .readers import Lists, class_folders, folder_images, variant_lists


@DATASET_REGISTRY.register()
class MtilAircraft(MtilDataset):
    """FGVC Aircraft (Maji et al., 2013): the official training and test lists of variants."""

    task = "Aircraft"
    prompts = words.AIRCRAFT_PROMPTS
    folders = ("fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b", "fgvc_aircraft")
    lists = staticmethod(variant_lists)


@DATASET_REGISTRY.register()
class MtilCaltech101(MtilDataset):
    """Caltech-101 (Fei-Fei et al., 2004): 101 classes, both kinds of faces, without background."""

    task = "Caltech101"
    prompts = words.THING_PROMPTS
    folders = ("caltech101", "caltech-101")
    images = ("101_ObjectCategories",)

    def read(self) -> Lists:
        folders = [name for name in class_folders(self.image_dir) if name != "BACKGROUND_Google"]
        names = {name: words.CALTECH_NAMES.get(name, plain(name)) for name in folders}
        return seeded_split(folder_images(self.image_dir, folders, names))


@DATASET_REGISTRY.register()
class MtilCIFAR100(MtilDataset):
    """CIFAR-100 (Krizhevsky, 2009), Python version."""

    task = "CIFAR100"
    prompts = words.PHOTO_PROMPTS
    folders = ("cifar-100-python", "cifar100/cifar-100-python")
    images = ("",)

    def read(self) -> Lists:
        return cifar100(self.dataset_dir)


@DATASET_REGISTRY.register()
class MtilDTD(MtilDataset):
    """Describable Textures (Cimpoi et al., CVPR 2014): partition 1."""

    task = "DTD"
    prompts = words.TEXTURE_PROMPTS
    folders = ("dtd/dtd", "dtd")
    lists = staticmethod(texture_lists)


@DATASET_REGISTRY.register()
class MtilEuroSAT(MtilDataset):
    """EuroSAT (Helber et al., 2019), the RGB images."""

    task = "EuroSAT"
    prompts = words.SATELLITE_PROMPTS
    folders = ("eurosat", "EuroSAT")
    images = ("2750",)

    def read(self) -> Lists:
        names = words.EUROSAT_NAMES
        return seeded_split(folder_images(self.image_dir, class_folders(self.image_dir, names, "EuroSAT"), names))


@DATASET_REGISTRY.register()
class MtilFlowers(MtilDataset):
    """Oxford Flowers 102 (Nilsback and Zisserman, 2008): 10 training images a class."""

    task = "Flowers"
    prompts = ("a photo of a {}, a type of flower.",)
    folders = ("flowers-102", "oxford_flowers")
    images = ("jpg",)
    lists = staticmethod(flower_lists)


@DATASET_REGISTRY.register()
class MtilFood(MtilDataset):
    """Food-101 (Bossard et al., ECCV 2014): 750 training and 250 test images a class."""

    task = "Food"
    prompts = ("a photo of a {}, a type of food.",)
    folders = ("food-101", "food101")
    lists = staticmethod(food_lists)


@DATASET_REGISTRY.register()
class MtilMNIST(MtilDataset):
    """MNIST (LeCun et al., 1998)."""

    task = "MNIST"
    prompts = ('a photo of the number: "{}".',)
    folders = ("MNIST/raw", "mnist/raw", "MNIST", "mnist")
    images = ("",)

    def read(self) -> Lists:
        return mnist(self.dataset_dir, words.DIGIT_NAMES)


@DATASET_REGISTRY.register()
class MtilOxfordPet(MtilDataset):
    """Oxford-IIIT Pets (Parkhi et al., CVPR 2012)."""

    task = "OxfordPet"
    prompts = ("a photo of a {}, a type of pet.",)
    folders = ("oxford-iiit-pet", "oxford_pets")
    lists = staticmethod(pet_lists)


@DATASET_REGISTRY.register()
class MtilStanfordCars(MtilDataset):
    """Stanford Cars (Krause et al., 2013); names end with the year."""

    task = "StanfordCars"
    prompts = words.CAR_PROMPTS
    folders = ("stanford_cars",)
    images = ("",)
    lists = staticmethod(car_lists)


@DATASET_REGISTRY.register()
class MtilSUN397(MtilDataset):
    """SUN397 (Xiao et al., CVPR 2010): all 108,754 images."""

    task = "SUN397"
    prompts = words.PLACE_PROMPTS
    folders = ("SUN397", "sun397")
    images = ("",)

    def read(self) -> Lists:
        # the list of names lies among the class folders; CoOp's layout has both one folder further down
        places = [os.path.join(self.dataset_dir, *inner) for inner in ((), ("SUN397",))]
        for place in places:
            if os.path.isfile(os.path.join(place, "ClassName.txt")):
                self.image_dir = place
                return seeded_split(place_folders(place, os.path.join(place, "ClassName.txt")))
        raise MissingFile(f"MtilSUN397: no ClassName.txt in {' or '.join(places)}{self._sources()}")
