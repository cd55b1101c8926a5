"""Files, logs, checkpoints, registries and meters: what every other part of the engine stands on."""

from .late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    arguments="ArgumentParser command_parser expand_user split_pairs",
    errors="brief MissingFile UnknownName UserError WriteFailed WrongType errors_in_one_line memory_errors one_line "
    "printable",
    files="RunLock atomic_files atomic_folder atomic_path atomic_save atomic_write begun check_file drop_begun locked "
    "read_json read_text signals_wait write_json",
    images="IMAGE_SUFFIXES is_deep_image read_image",
    logger="Logger get_logger logging_to quiet setup_logger",
    meters="AverageMeter MetricMeter",
    plain_pickle="PlainArray checkpoint_digest load_plain_pickle",
    registry="Registry check_availability closest get_most_similar_str_to_a_from_b",
    checkpoints="Inert check_kind check_records restricted_load",
    tensorfile="load_tensors read_facts save_tensors tensor_checksum tensor_digest",
    tools="check_isfile collect_env_info digest download_url import_matplotlib listdir_nohidden "
    "mkdir_if_missing set_random_seed sha256_file tolist_if_not",
    torchtools="adjust_learning_rate check_weights count_num_param drop_token_buffers init_network_weights "
    "is_plain_tensor load_checkpoint load_pretrained_weights load_weights open_all_layers open_specified_layers "
    "resume_from_checkpoint save_checkpoint set_bn_to_eval strip_module",
)
