"""A few labelled training pictures and the others without labels, on top of the few-shot protocol.

A declaration in two lines: class Mine(FewLabels, FewShotDataset), with what FewShotDataset asks for.
"""

from dassl.config import with_values
from dassl.data import subsample_classes
from dassl.utils import UserError


class FewLabels:
    """Mixed in before FewShotDataset: `train_x` is its draw, `train_u` is the rest of the training pictures.

    DATASET.NUM_LABELED counts the labelled pictures of all classes together, NUM_SHOTS those of one class.
    Below 1, all are labelled. DATASET.ALL_AS_UNLABELED puts the labelled ones among the others too.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        parts = subsample_classes(*self._parts, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
        self._train_u = parts[1]

    def _draw(self, train, val, cfg):
        shots = {"DATASET.NUM_SHOTS": self.labelled_per_class(train, cfg)}
        labelled, val = super()._draw(train, val, with_values(cfg, shots))
        taken = {item.impath for item in labelled}
        rest = [item for item in train if item.impath not in taken]
        self._parts = labelled, (labelled + rest if cfg.DATASET.ALL_AS_UNLABELED else rest)
        return labelled, val

    def labelled_per_class(self, train, cfg):
        """Labelled pictures a class; below 1: all. UserError if the keys contradict each other."""
        total, shots = cfg.DATASET.NUM_LABELED, cfg.DATASET.NUM_SHOTS
        if total < 1:
            return shots
        classes = self.get_num_classes(train)
        if total % classes or shots >= 1 and total != shots * classes:
            raise UserError(
                f"{type(self).__name__}: DATASET.NUM_LABELED is {total}, expected a multiple of its {classes} classes"
                + (f", with DATASET.NUM_SHOTS {shots}" if shots >= 1 else "")
            )
        return total // classes

    def metadata(self):
        """What results.json records of it."""
        seen = f"{len(self.train_x)} labelled pictures, {len(self.train_u)} without labels"
        return super().metadata() | {"data_seen": seen}
