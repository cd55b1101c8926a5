"""The yacs configuration: defaults, yaml files with `_BASE_`, and KEY VALUE pairs.

Precedence, later wins: engine defaults, trainers' own keys, data-set yaml, method yaml, the data-set
yaml's `_FINAL_` section, command-line flags, KEY VALUE pairs.
"""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    defaults="KEYS RULES cfg_default clean_cfg complete declare get_cfg_default",
    keys="Key Keys add_missing build_node check_values leaves",
    merge="aliased dump_yaml merge_pairs merge_tree merge_yaml read_yaml with_values",
)
