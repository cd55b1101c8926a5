"""A pass over the validation or test images, and the choice of the best model by validation."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from dassl.data.shards import share_of_batches
from dassl.evaluation import can_gather
from dassl.utils import check_availability, get_logger, write_json
from dassl.utils.distributed import gather, is_collective, is_main
from dassl.utils.progress import progress

from .checkpoint import BEST
from .losses import recorded


@torch.no_grad()
def evaluate(trainer: Any, split: str | None = None, observe: Callable | None = None) -> float:
    """The first result of one pass over a split (default TEST.SPLIT): accuracy in percent.

    observe(batch, output, label) sees each batch that this process evaluates.
    """
    split = split or trainer.cfg.TEST.SPLIT
    check_availability(split, ("val", "test"), "A split to evaluate on")
    trainer.set_model_mode("eval")
    trainer.evaluator.reset()
    if split == "val" and trainer.val_loader is None:
        split = "test"
    get_logger().info(f"Evaluate on the *{split}* set")
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    # of the batches, that this process evaluates; None for all of them, also where the loader has an order of its own
    share = share_of_batches(loader) if is_collective() and can_gather(trainer.evaluator) else None
    for batch in progress(loader if share is None else share, f"evaluating on {split}"):
        input, label = trainer.parse_batch_test(batch)
        output = trainer.model_inference(input)
        trainer.evaluator.process(output, label)
        if observe is not None:
            observe(batch, output, label)
    if share is not None:
        trainer.evaluator.gather()
    results = trainer.evaluator.results = trainer.evaluator.evaluate()
    for name, value in results.items():
        trainer.write_scalar(f"{split}/{name}", value, trainer.epoch)
    return next(iter(results.values()))


def write_outputs(trainer: Any, split: str | None = None) -> float:
    """`evaluate`, and OUTPUT_DIR/output.json: {image path: {"predict": logits, "gt": label}}."""
    rows = {}

    def record(batch, output, label):
        for path, logits, truth in zip(batch["impath"], output.tolist(), label.tolist(), strict=True):
            rows[path] = {"predict": logits, "gt": truth}

    result = evaluate(trainer, split, record)
    rows = {path: row for part in gather(rows) for path, row in part.items()}
    if is_main():
        write_json(rows, os.path.join(trainer.output_dir, "output.json"))
    return result


def keep_if_best(trainer: Any) -> None:
    """Validate after an epoch, and save the model as the best one if none was better."""
    cfg, result = trainer.cfg, trainer.test(split="val")
    trainer._history = recorded(trainer._history, trainer.epoch + 1, {"val_accuracy": result})
    first = cfg.OPTIM.WARMUP_EPOCH if cfg.TEST.SKIP_WARMUP else 0
    if result > trainer.best_result and trainer.epoch >= min(first, trainer.max_epoch - 1):  # the last is always one
        trainer.best_result = result
        takes = inspect.signature(trainer.save_model).parameters.keys()
        more = {"val_result": result} if takes & {"val_result", "kwargs"} else {}  # the fork's takes neither
        trainer.save_model(trainer.epoch, trainer.output_dir, **more, model_name=BEST)
        trainer._progress.record_best()
    trainer.evaluator.reset()  # the run's results are those of the final test
    trainer.evaluator.results = None
