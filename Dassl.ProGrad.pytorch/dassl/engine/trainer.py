"""Dassl's `dassl.engine.trainer`: the trainer classes, and every name that code written for Dassl finds there."""

# ruff: noqa: F401  the names that Dassl's own module imports are imported from it by others
import datetime
import json
import os.path as osp
import time
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)

from .base import TrainerBase
from .loops import TrainerX, TrainerXU
from .network import SimpleNet
from .simple import SimpleTrainer


def __getattr__(name: str):
    """TensorBoard's SummaryWriter, on first use: its import takes a second."""
    if name == "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
