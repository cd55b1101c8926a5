"""`cfg.TEST.EVALUATOR` to evaluator."""

from dassl.utils import Registry, check_availability, get_logger

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    """The evaluator that the config names. Raises UserError with the nearest name."""
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names(), "TEST.EVALUATOR")
    if cfg.VERBOSE:
        get_logger().debug(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
