"""Merging yaml files and KEY VALUE pairs into a yacs tree, with errors that name the nearest key.

A yaml file may say `_BASE_: other.yaml` (or a list; relative to its own folder; read first) and hold a
`_FINAL_` section, which the caller applies after all other yaml files: a data set that works with one
backbone only says so there.
"""

import ast
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from yacs.config import CfgNode as CN

from dassl.utils import MissingFile, UserError, brief, closest, read_text

# Keys that take a bool or any string. yacs knows one type a key, so the default gives way before its check.
FLEXIBLE_KEYS = ("CTX_INIT",)

MOST_VALUES, DEEPEST = 10_000, 20  # of a yaml file, aliases counted as what they stand for; ours have 40 and 4

Aliases = Mapping[str, str]


class _Loader(yaml.SafeLoader):
    """The safe loader, whose own constructors raise all kinds for `!!int x` or a 13th month; these name the line."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"no {node.tag}: {error}", node.start_mark) from None

    def fetch_flow_collection_start(self, kind):  # the scanner's time is quadratic in the depth
        if self.flow_level >= DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"nested more than {DEEPEST} deep", self.get_mark())
        super().fetch_flow_collection_start(kind)


def read_yaml(path: str | Path, _chain: tuple = ()) -> dict:
    """The nested dictionary of a yaml file with its `_BASE_` files merged below it."""
    path = Path(path)
    what = f"Config file {path}" + (f" (_BASE_ of {_chain[-1]})" if _chain else "")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{what}: expected a .yaml file (a .py file would be executed and is refused)")
    try:
        tree = yaml.load(read_text(path), Loader=_Loader)
    except MissingFile:
        near = closest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if os.path.isdir(path.parent) else []
        raise MissingFile(f"{what} does not exist" + (f"; nearest: {', '.join(near)}" if near else "")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not valid yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{what} is not valid yaml: nested more than {DEEPEST} deep") from None
    if path.resolve() in _chain:
        raise UserError(f"{what} is its own _BASE_")
    return _with_bases({} if tree is None else tree, path, what, _chain)


def _with_bases(tree: object, path: Path, what: str, chain: tuple) -> dict:
    """A file's tree, checked, over those of its `_BASE_` files."""
    _check_size(tree, what)
    if not isinstance(tree, dict):
        raise UserError(f"{what}: expected KEY: value lines, got {type(tree).__name__}")
    bases = tree.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"{what}: _BASE_ is {brief(bases)}, expected a file name or a list of them")
    if not isinstance(tree.get("_FINAL_", {}), dict):
        raise UserError(f"{what}: _FINAL_ is {brief(tree['_FINAL_'])}, expected KEY: value lines")
    merged: dict = {}
    for base in bases:
        _update(merged, read_yaml(path.parent / base, (*chain, path.resolve())))
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


def leaves(tree: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    """("A.B.C", value) for every leaf of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def aliased(pairs: Iterable[tuple[str, object]], aliases: Aliases, where: str) -> list[tuple[str, object]]:
    """Old key names replaced by new ones; one layer that sets both to different values is refused."""
    given, out = {}, {}
    for key, value in pairs:
        new = aliases.get(key, key)
        if new in out and given[new] != key and out[new] != value:
            raise UserError(f"{where}: {given[new]} = {out[new]} and {key} = {value} set the same thing; give one")
        given[new], out[new] = key, value
    return list(out.items())


def merge_yaml(cfg: CN, path: str | Path, aliases: Aliases | None = None) -> dict:
    """Merge a yaml file (with its bases) into cfg. Returns its `_FINAL_` section, not yet applied."""
    tree = read_yaml(path)
    final = tree.pop("_FINAL_", {})
    merge_tree(cfg, tree, str(path), aliases)
    return final


def merge_tree(cfg: CN, tree: Mapping, where: str, aliases: Aliases | None = None) -> None:
    """Merge a nested dictionary into cfg; `where` names its origin in errors."""
    for key, value in aliased(leaves(tree), aliases or {}, where):
        _set(cfg, key, value, where)


def merge_pairs(cfg: CN, pairs: list[str], aliases: Aliases | None = None) -> None:
    """Merge ["KEY", "VALUE", ...] of a command line into cfg."""
    if len(pairs) % 2:
        raise UserError(f"KEY VALUE pairs: {pairs[-1]} has no value (got: {' '.join(pairs)})")
    given = zip(pairs[::2], (_literal(value) for value in pairs[1::2]), strict=True)
    for key, value in aliased(given, aliases or {}, "KEY VALUE pairs"):
        _set(cfg, key, value, "KEY VALUE pairs")


def _literal(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: {[]: 1}
        return text


def _set(cfg: CN, key: str, value: object, where: str) -> None:
    node, leaf = _find(cfg, key, where)
    old = node[leaf]
    if isinstance(old, CN):
        raise UserError(f"{where}: {key} is a group of keys ({', '.join(old)}), not a value")
    if leaf in FLEXIBLE_KEYS and isinstance(value, (bool, str)):
        node[leaf] = value
        return
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, str) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        node[leaf] = str(value)
        return
    try:
        node.merge_from_list([leaf, value])
    except (ValueError, AssertionError, KeyError, TypeError, MemoryError, RecursionError):  # it parses texts again
        kinds = f"is a {type(value).__name__}, expected {type(old).__name__}"
        raise UserError(f"{where}: {key} = {brief(value)} {kinds} (default {old!r})") from None


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
