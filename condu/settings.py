"""The keys of TRAINER.CONDU, their checks and what they mean (ConDU, arXiv 2503.10705)."""

import math
from collections.abc import Sequence
from typing import get_args

from yacs.config import CfgNode as CN

from dassl.config import Key
from dassl.engine.precision import precision_key
from dassl.utils import UserError, check_availability

from .delta import SCALES
from .evaluation import LABELS
from .tuning import MERGE_SPACES, SPACES
from .voting import MIN_TEMP, Tuning, Vote, Weighting

SCHEDULES = ("cosine_steps", "constant")

KEYS = {  # with the paper's values
    "STREAM": Key("", "folder of the stream's state; empty: OUTPUT_DIR/stream", path=True, role="incidental"),
    "EXPERTS": Key("", "store; empty: ConDU keeps none, ConDU_Expert in OUTPUT_DIR", path=True, role="incidental"),
    "HISTORY": Key(False, "keep the state of earlier sessions too", role="incidental"),
    "HALF": Key(False, "unified delta as bf16 on disk"),
    "SESSION": Key(-1, "number of this session; in evaluation the one to load; negative: any", role="evaluation"),
    "SPACE": Key("full", "what trains: full (both towers) or lora", choices=SPACES),
    "MERGE_SPACE": Key("factors", "what LoRA's experts are fused as", choices=MERGE_SPACES),
    "RANK": Key(64, "of LoRA", ge=1),
    "SCALE": Key("l1", "rule of the triggers' scales: l1 (paper), tensor_mean (released code), none", choices=SCALES),
    "ITERATIONS": Key(1000, "optimiser steps a task", ge=1, role="training"),
    "ROUND": Key(100, "optimiser steps between two resume points", ge=1, role="training"),
    "LR_OF": Key([], '"Task=rate" for tasks that do not train at OPTIM.LR', item=str, role="training"),
    "LABEL_SMOOTHING": Key(0.2, "of the cross-entropy", ge=0, lt=1, role="training"),
    "START": Key("", "expert to start from, FOLDER/TASK of a store; empty: none", path=True, role="training"),
    "VOTE.INCLUDE_PRETRAINED": Key(False, "does the pretrained model vote too?", role="evaluation"),
    "VOTE.K": Key(4, "experts that vote, the most similar ones", ge=1, role="evaluation"),
    "VOTE.WEIGHTING": Key("similarity", "of their votes", choices=get_args(Weighting), role="evaluation"),
    "VOTE.TEMP": Key(1.0, "of minmax", ge=MIN_TEMP, role="evaluation"),
    "VOTE.SPACE": Key("logits", "what is summed", choices=get_args(Tuning), role="evaluation"),
    "TASK_AGNOSTIC": Key(False, "evaluate known tasks by the vote too", role="evaluation"),
    "LABELS": Key("target", "classes of a vote: target, the data set's; union, all", choices=LABELS, role="evaluation"),
    "RESIDENT": Key(1, "experts kept in memory as weights, in evaluation", ge=1, role="incidental"),
    "CHUNK": Key(1024, "images decoded at once, in evaluation", ge=1, role="incidental"),
    "PREC": precision_key("fp32", ("fp32", "amp", "bf16")),
}


def check_keys(cfg: CN) -> None:
    """UserError for a value that does not go together with the engine's keys."""
    own = cfg.TRAINER.CONDU
    check_availability(cfg.OPTIM.LR_SCHEDULER, SCHEDULES, "OPTIM.LR_SCHEDULER")
    if cfg.TEST.FINAL_MODEL != "last_step":
        raise UserError(f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL}: ConDU has no validation, set last_step")
    if not cfg.INPUT.VIEW_SEEDS:
        raise UserError("INPUT.VIEW_SEEDS is False: ConDU draws augmentation a picture and pass only, set it to True")
    learning_rates(own.LR_OF)


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
    """TRAINER.CONDU.VOTE as a rule."""
    return Vote(node.INCLUDE_PRETRAINED, node.K, node.WEIGHTING, node.SPACE, node.TEMP)
