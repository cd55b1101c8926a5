"""Files, logs, checkpoints, registries and meters: what every other part of the engine stands on."""

from .atomic import atomic_folder, atomic_path, atomic_save, atomic_write, write_json
from .errors import MissingFile, UnknownName, UserError, WriteFailed, WrongType, errors_in_one_line
from .lock import RunLock
from .logger import Logger, get_logger, logging_to, setup_logger
from .meters import AverageMeter, MetricMeter
from .plain_pickle import PlainArray, load_plain_pickle
from .registry import Registry, check_availability, closest, get_most_similar_str_to_a_from_b
from .restricted import Inert, restricted_load
from .tensorfile import load_tensors, read_facts, save_tensors, tensor_checksum, tensor_digest
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
    hold_batch_norms,
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
    "PlainArray",
    "Registry",
    "RunLock",
    "UnknownName",
    "UserError",
    "WriteFailed",
    "WrongType",
    "atomic_folder",
    "atomic_path",
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
    "errors_in_one_line",
    "get_logger",
    "get_most_similar_str_to_a_from_b",
    "hold_batch_norms",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_plain_pickle",
    "load_pretrained_weights",
    "load_tensors",
    "logging_to",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_facts",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "restricted_load",
    "save_checkpoint",
    "save_tensors",
    "set_random_seed",
    "setup_logger",
    "sha256_file",
    "strip_module",
    "tensor_checksum",
    "tensor_digest",
    "tolist_if_not",
    "write_json",
]
