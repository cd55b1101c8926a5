"""The registry of data sets."""

from yacs.config import CfgNode as CN

from dassl.config import complete
from dassl.utils import Registry, check_availability, get_logger

from .base_dataset import DatasetBase, check_items

DATASET_REGISTRY = Registry("DATASET", plugins="datasets")
DATASET_REGISTRY.__doc__ = """Data sets by class name, for cfg.DATASET.NAME.

A registered class takes the config as its one argument and leaves behind, usually through
DatasetBase.__init__, `train_x`, `val` (may be None) and `test` as lists of Datum, `train_u` (None if there is
no unlabelled part), `classnames` in label order, `lab2cname` and `num_classes`. Labels are 0, 1, ... without
gaps.
"""


def build_dataset(cfg: CN) -> DatasetBase:
    """The data set cfg.DATASET.NAME. Unknown name: UserError with the nearest and the available ones."""
    complete(cfg)
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY, "DATASET.NAME")
    if cfg.VERBOSE:
        get_logger().debug(f"Loading dataset: {cfg.DATASET.NAME}")
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    if not isinstance(dataset, DatasetBase):  # which looks at its lists itself
        parts = {part: getattr(dataset, part, None) for part in ("train_x", "train_u", "val", "test")}
        check_items(cfg.DATASET.NAME, **parts)
    return dataset
