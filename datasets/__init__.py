"""Data sets, one module each. Importing this package imports none of them: call register_all().

A module dropped beside the others is found too. It registers a class in dassl.data.datasets.DATASET_REGISTRY;
base.FewShotDataset is the short way to write one, mtil.MtilDataset that for a task of a stream, and a
class in Dassl's own style works as well. Images of your own need no class: custom.py.

python -m datasets checks what lies below the data root (tools/).
"""

PUBLIC = (  # those of CoOp's protocols, by the names of configs/datasets
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
)


def register_all() -> None:
    """Import every module of this folder, so that its data sets are registered."""
    from dassl.utils.registry import import_modules  # other programs probe for a package of this name

    import_modules(__name__, __path__)
