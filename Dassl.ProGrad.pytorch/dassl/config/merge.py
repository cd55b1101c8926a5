"""Merging yaml files and KEY VALUE pairs into a yacs tree, with errors that name the nearest key.

A yaml file may say `_BASE_: other.yaml` (or a list; relative to its own folder; read first) and hold a
`_FINAL_` section, which the caller applies after all other yaml files: a data set that works with one
backbone only says so there.
"""

import copy
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import MissingFile, UserError, brief, closest, read_text, split_pairs

from .defaults import RULES
from .keys import Key, Typed, leaves, literal, plain

FLEXIBLE_KEYS = ("CTX_INIT",)  # a bool or any text, whoever declares them

MOST_VALUES, DEEPEST = 10_000, 20  # of a yaml file, aliases counted as what they stand for; ours have 40 and 4

Aliases = Mapping[str, str]


class _Values:
    """Before a safe loader: what is no text keeps the text that stands there, a key stands once in a mapping. Its own
    constructors raise all kinds for `!!int x` or a 13th month; these name the line."""

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"no {node.tag}: {error}", node.start_mark) from None
        if isinstance(node, yaml.ScalarNode) and not isinstance(value, str):
            text = Typed(node.value)
            text.value = value if isinstance(value, bool | int | float | None) else node.value
            return text
        return value

    def construct_mapping(self, node, deep=False):
        keys = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            first = keys.setdefault(key.value, key) if isinstance(key, yaml.ScalarNode) else key
            if first is not key:
                lines = f"lines {first.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice, in {lines}")
        return super().construct_mapping(node, deep)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Values, _SafeLoader):
    """libyaml, where PyYAML has it: a tenth of the time."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes trees as yacs does, by libyaml where PyYAML has it."""


_Dumper.add_multi_representer(dict, _Dumper.represent_dict)


def dump_yaml(cfg: CN) -> str:
    """The text of a yaml file that says what the tree holds: `cfg.dump()`, in a tenth of the time."""
    try:
        return yaml.dump(cfg, Dumper=_Dumper)
    except UnicodeEncodeError:  # names of folders need not be Unicode, which libyaml asks for
        return cfg.dump()


def read_yaml(path: str | Path) -> dict:
    """The nested dictionary of a yaml file with its `_BASE_` files merged below it."""
    return plain(_read(path))


@functools.lru_cache(maxsize=128)
def _parse(text: str) -> object:
    """A main job reads a few files some hundred times."""
    return yaml.load(text, Loader=_Loader)


def _read(path: str | Path, _chain: tuple = ()) -> dict:
    path = Path(path)
    what = f"Config file {path}" + (f" (_BASE_ of {_chain[-1]})" if _chain else "")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{what}: expected a .yaml file (a .py file would be executed and is refused)")
    try:
        tree = copy.deepcopy(_parse(read_text(path)))
    except MissingFile:
        near = closest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if os.path.isdir(path.parent) else []
        raise MissingFile(f"{what} does not exist" + (f"; nearest: {', '.join(near)}" if near else "")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not valid yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{what} is not valid yaml: nested more than {DEEPEST} deep") from None
    if path.resolve() in _chain:
        raise UserError(f"{what} is its own _BASE_")
    return _with_bases({} if getattr(tree, "value", tree) is None else tree, path, what, _chain)


def _with_bases(tree: object, path: Path, what: str, chain: tuple) -> dict:
    """A file's tree, checked, over those of its `_BASE_` files."""
    _check_size(tree, what)
    if not isinstance(tree, dict):
        raise UserError(f"{what}: expected KEY: value lines, got {type(tree).__name__}")
    bases = plain(tree.pop("_BASE_", []))
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"{what}: _BASE_ is {brief(bases)}, expected a file name or a list of them")
    if not isinstance(tree.get("_FINAL_", {}), dict):
        raise UserError(f"{what}: _FINAL_ is {brief(plain(tree['_FINAL_']))}, expected KEY: value lines")
    merged: dict = {}
    for base in bases:
        _update(merged, _read(path.parent / base, (*chain, path.resolve())))
    return _update(merged, tree)


def _check_size(tree: object, what: str) -> None:
    """A few lines of aliases can stand for more values than any memory holds, or for themselves."""
    stack, seen = [(tree, 0)], 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise UserError(f"{what} holds more than {MOST_VALUES} values, or nests them more than {DEEPEST} deep")
        if isinstance(node, dict | list | tuple | set):
            inside = [*node, *node.values()] if isinstance(node, dict) else node
            stack += [(child, depth + 1) for child in inside]


def _update(tree: dict, new: dict) -> dict:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _update(tree[key], value)
        else:
            tree[key] = value
    return tree


def aliased(pairs: Iterable[tuple[str, object]], aliases: Aliases, where: str) -> list[tuple[str, object]]:
    """Old key names replaced by new ones; one layer that sets both to different values is refused."""
    names: dict[str, str] = {}
    out: dict[str, object] = {}
    for key, value in pairs:
        new = aliases.get(key, key)
        if new in out and names[new] != key and out[new] != value:
            raise UserError(f"{where}: {names[new]} = {out[new]} and {key} = {value} set the same thing; give one")
        names[new], out[new] = key, value
    return list(out.items())


def merge_yaml(cfg: CN, path: str | Path, aliases: Aliases | None = None) -> dict:
    """Merge a yaml file (with its bases) into cfg. Returns its `_FINAL_` section, not yet applied."""
    tree = _read(path)
    final = tree.pop("_FINAL_", {})
    merge_tree(cfg, tree, str(path), aliases)
    return final


def merge_tree(cfg: CN, tree: Mapping, where: str, aliases: Aliases | None = None) -> None:
    """Merge a nested dictionary into cfg; `where` names its origin in errors."""
    pairs = list(leaves(tree))
    names = [key for key, _ in pairs]
    if len(set(names)) < len(names):  # one of them with dots
        raise UserError(f"{where}: {next(key for key in names if names.count(key) > 1)} stands twice")
    for key, value in aliased(pairs, aliases or {}, where):
        _set(cfg, key, value, where)


def merge_pairs(cfg: CN, pairs: list[str], aliases: Aliases | None = None) -> None:
    """Merge ["KEY", "VALUE", "KEY=VALUE", ...] of a command line into cfg."""
    pairs = split_pairs(pairs)
    if len(pairs) % 2:
        raise UserError(f"KEY VALUE pairs: {pairs[-1]} has no value (got: {' '.join(map(str, pairs))})")
    # a quoted text is that text
    values = (text if isinstance(text := literal(value), str) else value for value in pairs[1::2])
    for key, value in aliased(zip(pairs[::2], values, strict=True), aliases or {}, "KEY VALUE pairs"):
        _set(cfg, key, value, "KEY VALUE pairs")


def with_values(cfg: CN, values: Mapping[str, object], where: str = "a command") -> CN:
    """A frozen copy of a config with other values of some keys."""
    copy = cfg.clone()
    copy.defrost()
    merge_tree(copy, values, where)
    copy.freeze()
    return copy


def _set(cfg: CN, name: str, value: object, where: str) -> None:
    node, leaf = _find(cfg, name, where)
    old = node[leaf]
    if isinstance(old, CN):
        raise UserError(f"{where}: {name} is a group of keys ({', '.join(old)}), not a value")
    key = RULES.get(name)
    if key is None or type(key.default) is not type(old) and not (key.also and isinstance(old, key.also)):
        also = str if isinstance(old, bool) else bool  # of another copy of the defaults: its value says the type
        key = Key(old, also=also if leaf in FLEXIBLE_KEYS else None)
    value = key.parse(value)
    key.check(name, value, where, choices=False)
    node[leaf] = value


def _find(cfg: CN, key: str, where: str) -> tuple[CN, str]:
    node, *parts = cfg, *str(key).split(".")
    for i, part in enumerate(parts):
        if not isinstance(node, CN) or part not in node:
            known = [name for name, _ in leaves(cfg)]
            near = closest(str(key), known)
            at = ".".join(parts[:i]) or "the top level"
            here = ", ".join(node) if isinstance(node, CN) else "no keys"
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise UserError(f"{where}: unknown config key {key} ({hint}{at} has: {here})")
        if i < len(parts) - 1:
            node = node[part]
    return node, parts[-1]
