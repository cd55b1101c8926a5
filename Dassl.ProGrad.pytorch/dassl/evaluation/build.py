"""`cfg.TEST.EVALUATOR` to evaluator."""

from typing import Any

from yacs.config import CfgNode as CN

from dassl.utils import Registry, check_availability, get_logger

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CN, **kwargs) -> Any:
    """The evaluator (as EvaluatorBase) that the config names. Raises UserError with the nearest name."""
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names(), "TEST.EVALUATOR")
    if cfg.VERBOSE:
        get_logger().debug(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
