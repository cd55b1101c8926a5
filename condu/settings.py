"""The keys of TRAINER.CONDU, their checks and what they mean (ConDU, arXiv 2503.10705)."""

import math
from collections.abc import Sequence

from yacs.config import CfgNode as CN

from dassl.utils import UserError, check_availability

from .delta import SCALES
from .evaluation import LABELS
from .space import MERGE_SPACES, SPACES
from .voting import Vote

PRECISIONS = ("fp32", "amp", "bf16")
SCHEDULES = ("cosine_steps", "constant")


def default_keys() -> CN:
    """TRAINER.CONDU with the paper's values."""
    return CN(
        {
            "STREAM": "",  # folder of the stream's state; empty: OUTPUT_DIR/stream
            "EXPERTS": "",  # folder of the store of experts; empty: ConDU keeps none, ConDU_Expert in OUTPUT_DIR
            "HISTORY": False,  # keep the state of earlier sessions too
            "HALF": False,  # unified delta as bf16 on disk
            "SESSION": -1,  # number that this session is expected to have; in evaluation the one to load; -1: any
            "SPACE": "full",  # what trains: full (both towers) or lora
            "MERGE_SPACE": "factors",  # what LoRA's experts are fused as: factors or product
            "RANK": 64,  # of LoRA
            "SCALE": "l1",  # rule of the triggers' scales: l1 (paper), tensor_mean (released code), none
            "ITERATIONS": 1000,  # optimiser steps a task
            "ROUND": 100,  # optimiser steps between two resume points
            "LR_OF": [],  # "Task=rate" for tasks that do not train at OPTIM.LR
            "LABEL_SMOOTHING": 0.2,
            "START": "",  # expert to start from instead of the pretrained weights: FOLDER/TASK of a store
            "VOTE": CN(
                {
                    "INCLUDE_PRETRAINED": False,  # does the pretrained model vote too?
                    "K": 4,  # experts that vote, the most similar ones
                    "WEIGHTING": "similarity",  # similarity, uniform, minmax
                    "TEMP": 1.0,  # of minmax
                    "SPACE": "logits",  # what is summed: logits or probabilities
                }
            ),
            "TASK_AGNOSTIC": False,  # evaluate known tasks by the vote too
            "LABELS": "target",  # classes that a vote chooses from: target (the data set's), union (all known ones too)
            "RESIDENT": 1,  # experts kept in memory as weights, in evaluation
            "CHUNK": 1024,  # pictures decoded at once, in evaluation
            "PREC": "fp32",  # fp32, amp, bf16
        }
    )


def check_keys(cfg: CN) -> None:
    """UserError for a value that ConDU does not know, or that does not go together with the engine's keys."""
    own = cfg.TRAINER.CONDU
    for key, available in (
        ("SPACE", SPACES),
        ("MERGE_SPACE", MERGE_SPACES),
        ("SCALE", SCALES),
        ("LABELS", LABELS),
        ("PREC", PRECISIONS),
    ):
        check_availability(own[key], available, f"TRAINER.CONDU.{key}")
    check_availability(cfg.OPTIM.LR_SCHEDULER, SCHEDULES, "OPTIM.LR_SCHEDULER")
    for key in ("ITERATIONS", "ROUND", "RANK", "RESIDENT", "CHUNK"):
        if own[key] < 1:
            raise UserError(f"TRAINER.CONDU.{key} is {own[key]}, expected 1 or more")
    if not 0 <= own.LABEL_SMOOTHING < 1:
        raise UserError(f"TRAINER.CONDU.LABEL_SMOOTHING is {own.LABEL_SMOOTHING}, expected 0 or more and less than 1")
    if cfg.TEST.FINAL_MODEL != "last_step":
        raise UserError(f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL}: ConDU has no validation, set last_step")
    if not cfg.INPUT.VIEW_SEEDS:
        raise UserError("INPUT.VIEW_SEEDS is False: ConDU draws augmentation a picture and pass only, set it to True")
    learning_rates(own.LR_OF)
    vote_rule(own.VOTE)


def learning_rates(pairs: Sequence[str]) -> dict[str, float]:
    """["Aircraft=5e-5", ...] -> {"Aircraft": 5e-5, ...}. UserError names an entry that is none, or is there twice."""
    rates = {}
    for pair in pairs:
        task, equals, number = str(pair).partition("=")
        task = task.strip()
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not (task and equals and 0 < rate < math.inf):
            raise UserError(f'TRAINER.CONDU.LR_OF: "{pair}" is no "Task=rate", such as "Aircraft=5e-5"')
        if task in rates:
            raise UserError(f"TRAINER.CONDU.LR_OF: {task} has two rates, {rates[task]:g} and {rate:g}")
        rates[task] = rate
    return rates


def vote_rule(node: CN) -> Vote:
    """TRAINER.CONDU.VOTE as a rule. UserError for values that it does not take."""
    try:
        return Vote(node.INCLUDE_PRETRAINED, node.K, node.WEIGHTING, node.SPACE, node.TEMP)
    except ValueError as error:
        raise UserError(f"TRAINER.CONDU.VOTE: {error}") from None
