"""The yacs configuration: defaults, yaml files with `_BASE_`, and KEY VALUE pairs.

Precedence, later wins: engine defaults, trainers' own keys, data-set yaml, method yaml, the data-set
yaml's `_FINAL_` section, command-line flags, KEY VALUE pairs.
"""

from .defaults import clean_cfg, get_cfg_default
from .merge import aliased, leaves, merge_pairs, merge_tree, merge_yaml, read_yaml

__all__ = [
    "aliased",
    "clean_cfg",
    "get_cfg_default",
    "leaves",
    "merge_pairs",
    "merge_tree",
    "merge_yaml",
    "read_yaml",
]
