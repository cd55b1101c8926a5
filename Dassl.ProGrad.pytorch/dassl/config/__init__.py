"""The yacs configuration: defaults, yaml files with `_BASE_`, and KEY VALUE pairs.

Precedence, later wins: engine defaults, trainers' own keys, data-set yaml, method yaml, the data-set
yaml's `_FINAL_` section, command-line flags, KEY VALUE pairs.
"""

from .defaults import _C as cfg_default
from .defaults import KEYS, clean_cfg, complete, declare, get_cfg_default
from .keys import Key, Keys, add_missing, build_node, check_values
from .merge import aliased, leaves, merge_pairs, merge_tree, merge_yaml, read_yaml

__all__ = [
    "KEYS",
    "Key",
    "Keys",
    "add_missing",
    "aliased",
    "build_node",
    "cfg_default",
    "check_values",
    "clean_cfg",
    "complete",
    "declare",
    "get_cfg_default",
    "leaves",
    "merge_pairs",
    "merge_tree",
    "merge_yaml",
    "read_yaml",
]
