"""Files, logs, checkpoints, registries and meters: what every other part of the engine stands on."""

from .atomic import atomic_save, atomic_write, write_json
from .errors import MissingFile, UnknownName, UserError, WriteFailed, WrongType
from .lock import RunLock
from .logger import Logger, get_logger, logging_to, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability, closest, get_most_similar_str_to_a_from_b
from .restricted import Inert, restricted_load
from .tools import (
    check_isfile,
    collect_env_info,
    digest,
    download_url,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    sha256_file,
    tolist_if_not,
)
from .torchtools import (
    count_num_param,
    drop_token_buffers,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
    strip_module,
)

__all__ = [
    "AverageMeter",
    "Inert",
    "Logger",
    "MetricMeter",
    "MissingFile",
    "Registry",
    "RunLock",
    "UnknownName",
    "UserError",
    "WriteFailed",
    "WrongType",
    "atomic_save",
    "atomic_write",
    "check_availability",
    "check_isfile",
    "closest",
    "collect_env_info",
    "count_num_param",
    "digest",
    "download_url",
    "drop_token_buffers",
    "get_logger",
    "get_most_similar_str_to_a_from_b",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "logging_to",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "restricted_load",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "sha256_file",
    "strip_module",
    "tolist_if_not",
    "write_json",
]
