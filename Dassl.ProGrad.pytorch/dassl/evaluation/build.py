"""`cfg.TEST.EVALUATOR` to evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yacs.config import CfgNode as CN

from dassl.utils import Registry, check_availability, get_logger

if TYPE_CHECKING:
    from .evaluator import EvaluatorBase

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CN, **kwargs) -> EvaluatorBase:
    """The evaluator that the config names. Raises UserError with the nearest name."""
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names(), "TEST.EVALUATOR")
    if cfg.VERBOSE:
        get_logger().debug(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
