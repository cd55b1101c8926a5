"""Data sets, one module each. Importing this package imports none of them: call register_all().

A module dropped beside the others is found too. It registers a class in dassl.data.datasets.DATASET_REGISTRY;
protocol.FewShotDataset is the short way to write one, mtil.MtilDataset that for a task of a stream, and a
class in Dassl's own style works as well. Pictures of your own need no class: custom.py.

python -m datasets checks what lies below the data root (tools/).
"""

import importlib
import pkgutil


def register_all() -> None:
    """Import every module of this folder, so that its data sets are registered."""
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg and module.name != "__main__":
            importlib.import_module(f"{__name__}.{module.name}")
