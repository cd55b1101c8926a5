"""The orders in which streams of tasks are learned, by the names of their yaml files (MTIL: arXiv 2303.06628)."""

ORDERS = {
    "I": (
        *("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "oxford_pet"),
        *("stanford_cars", "sun397"),
    ),
    "II": (
        *("stanford_cars", "food", "mnist", "oxford_pet", "flowers", "sun397", "aircraft", "caltech101", "dtd"),
        *("eurosat", "cifar100"),
    ),
    "toy": (
        *("toy_colours", "toy_counts", "toy_digits", "toy_letters", "toy_objects", "toy_scenes", "toy_shapes"),
        "toy_textures",
    ),
}
