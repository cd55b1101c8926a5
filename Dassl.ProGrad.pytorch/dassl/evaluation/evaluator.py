"""Accuracy, error and macro F1 of a classifier. B: batch, C: classes, K: labels that occur."""

import os
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from yacs.config import CfgNode as CN

from dassl.utils import UserError, atomic_save, get_logger
from dassl.utils.distributed import gather_batches, is_main

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """Takes outputs batch by batch, then gives named results.

    One that also has `gather()`, beside or below its `process`, can be given a share of the batches in each of
    several processes: `gather`, before `evaluate`, brings together what all of them processed, in order of rank.
    """

    def __init__(self, cfg: CN):
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch: outputs `mo` (B, ...), labels `gt` (B,)."""
        raise NotImplementedError

    def evaluate(self) -> dict:
        """{name: result} of what was processed since `reset`."""
        raise NotImplementedError


def can_gather(evaluator: object) -> bool:
    """Does its `gather` know of all that its `process` keeps? Not if a subclass has a `process` of its own alone."""
    kinds = type(evaluator).__mro__
    names = ("gather", "process")
    gather, process = (next((i for i, kind in enumerate(kinds) if name in vars(kind)), None) for name in names)
    return gather is not None and process is not None and gather <= process


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 classification. `correct`, `total` and `results` are those of the last `evaluate()`."""

    def __init__(self, cfg: CN, lab2cname: Mapping[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self._per_class = cfg.TEST.PER_CLASS_RESULT
        self._matrix_path = os.path.join(cfg.OUTPUT_DIR, "cmat.pt") if cfg.TEST.COMPUTE_CMAT else None
        if self._per_class and lab2cname is None:
            raise UserError("TEST.PER_CLASS_RESULT needs class names, but lab2cname is None")
        self.reset()

    def reset(self) -> None:
        self.correct = self.total = self._correct = self._total = 0
        self.results: dict[str, float] | None = None
        self._per_class_res = None
        self._y_true, self._y_pred = [], []  # Dassl's names. Batches; numbers of a subclass, or once evaluated

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch: logits `mo` (B, C), labels `gt` (B,). Nothing is copied off the device yet."""
        self._y_true.append(gt.detach())
        self._y_pred.append(mo.detach().argmax(1))

    def gather(self) -> None:
        """Of several processes: have the batches of all, each processed by one of them, in order of rank."""
        self._y_true, self._y_pred = gather_batches(self._y_true), gather_batches(self._y_pred)

    def evaluate(self) -> OrderedDict[str, float]:
        """Results in percent: accuracy, error_rate, macro_f1 and, if asked for, perclass_accuracy.
        UserError: nothing was processed."""
        none = torch.empty(0, dtype=torch.long)
        truth, predicted = (
            torch.cat([none, *(torch.as_tensor(labels).reshape(-1).cpu() for labels in part)]).numpy()
            for part in (self._y_true, self._y_pred)
        )
        if not len(truth):
            raise UserError("Nothing to evaluate: the test set is empty")
        labels, places = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
        rows, columns = np.split(places, 2)  # true and predicted labels, as places in `labels`
        support, claimed, hits = (
            np.bincount(some, minlength=len(labels)) for some in (rows, columns, rows[rows == columns])
        )
        occurs = support > 0
        macro_f1 = float(np.mean(2 * hits[occurs] / (support + claimed)[occurs]))
        self.correct = self._correct = int(hits.sum())
        self.total = self._total = len(truth)
        self._y_true, self._y_pred = truth.tolist(), predicted.tolist()
        accuracy = 100.0 * self.correct / self.total
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=100.0 * macro_f1)
        self._log(results)
        if self._per_class:
            results["perclass_accuracy"] = self._log_classes(labels[occurs], support[occurs], hits[occurs])
        if self._matrix_path and is_main():
            size = len(labels)  # rows: what share of each true label was taken for each label
            matrix = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
            atomic_save(torch.from_numpy(matrix / support[:, None].clip(1)), self._matrix_path)
            get_logger().info(f"Confusion matrix is saved to {self._matrix_path}")
        self.results = results
        return results

    def _log(self, results):
        get_logger().info(
            "=> result\n"
            f"* total: {self.total:,}\n"
            f"* correct: {self.correct:,}\n"
            f"* accuracy: {results['accuracy']:.2f}%\n"
            f"* error: {results['error_rate']:.2f}%\n"
            f"* macro_f1: {results['macro_f1']:.2f}%"
        )

    def _log_classes(self, labels, totals, hits):
        logger = get_logger()
        logger.info("=> per-class result")
        accuracies = []
        for label, total, right in zip(labels.tolist(), totals, hits, strict=True):
            accuracies.append(100.0 * int(right) / int(total))
            name = self._lab2cname.get(label, "unknown")
            logger.info(f"* class: {label} ({name})\ttotal: {total:,}\tcorrect: {right:,}\tacc: {accuracies[-1]:.2f}%")
        mean = float(np.mean(accuracies))
        logger.info(f"* average: {mean:.2f}%")
        return mean
