"""A config key: its default, meaning, type and range. One form for the engine's keys (defaults.py) and a trainer's
(its class attribute KEYS); one reader of values as they are typed, one check of values."""

import ast
import math
import operator
import pkgutil
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode as CN

from dassl.utils import UserError, brief, check_availability, expand_user

BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}


@dataclass(frozen=True)
class Key:
    """A key with its default, which says its type, and its meaning.

    ge, gt, le, lt: bounds of a number, or of each item of a sequence; numbers are finite.
    choices: what a text, or each text of a sequence, may be; "module:attribute" names a list, dict or Registry that
        is looked up when a value is checked, so that names which others add count.
    length: of a sequence; nonempty: it has an item. item: type of its items, where its default has none.
    also: another type that is taken. path: a text that names a file or folder; `~` is expanded.
    test: what the bounds cannot say; its docstring says it.
    role: what a value bears on, by which `dassl.engine.recipe` compares runs: "" all results; "training", "evaluation"
        those of one; "incidental" none: where, how fast, how much is printed. A path that bears on results names an
        input, which is compared by what lies there.
    """

    default: Any
    meaning: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: Iterable[str] | str = ()
    length: int | None = None
    nonempty: bool = False
    item: type | None = None
    also: type | None = None
    path: bool = False
    role: str = ""
    test: Callable[[Any], bool] | None = None

    @property
    def is_sequence(self) -> bool:
        return isinstance(self.default, list | tuple)

    @property
    def scalar(self) -> type:
        """The type of the value, or of each item."""
        if self.is_sequence:
            return self.item or (type(self.default[0]) if self.default else object)
        return type(self.default)

    @property
    def type_name(self) -> str:
        """Such as "float", "tuple of int", "bool, or str"."""
        name = type(self.default).__name__ + (f" of {self.scalar.__name__}" if self.is_sequence else "")
        return f"{name}, or {self.also.__name__}" if self.also else name

    @property
    def available(self) -> list[str]:
        """The choices, as they are now."""
        names = pkgutil.resolve_name(self.choices) if isinstance(self.choices, str) else self.choices
        names = getattr(names, "registered_names", names)
        return list(names() if callable(names) else names)

    @property
    def limits(self) -> str:
        """The range, in words; "" where the type says all."""
        ends = ((words, getattr(self, name)) for name, (_, words) in BOUNDS.items())
        words = [f"{text} {end:.10g}" for text, end in ends if end is not None]
        count = [f"{self.length} items"] if self.length else ["not empty"] if self.nonempty else []
        return ", ".join(words + count + ([self.test.__doc__] if self.test and self.test.__doc__ else []))

    def parse(self, value: Any) -> Any:
        """A value as typed (a text, or from yaml) as this key's type, or as it is where it is none of it."""
        if not self.is_sequence:
            return self._scalar(value, type(self.default))
        if isinstance(value, str):
            value = _items(str(value)) if self.scalar is str else literal(str(value))
        if isinstance(value, list | tuple):
            return type(self.default)(self._scalar(item, self.scalar) for item in value)
        return value

    def _scalar(self, value: Any, kind: type) -> Any:
        if bool in (kind, self.also) and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if str in (kind, self.also):
            value = str(value) if _is(value, str, float) else value
            return expand_user(value) if self.path and isinstance(value, str) else value
        value = literal(str(value) if isinstance(value, Typed) and kind in (int, float) else plain(value))
        return float(value) if kind is float and _is(value, int) and abs(value) <= sys.maxsize else value

    def check(self, name: str, value: Any, where: str = "", *, choices: bool = True) -> None:
        """UserError, which begins with `where`, unless the key takes `value`. choices: hold them too."""
        listed = self.is_sequence and isinstance(value, list | tuple)
        items = value if listed else [value]
        if not self._takes(value, items, listed):
            kind = "" if listed or _is(value, type(self.default), self.also) else f" is a {type(value).__name__}"
            limits = f", {self.limits}" if self.limits else ""
            at = f"{where}: " if where else ""
            finite = "finite " if any(isinstance(item, float) and not math.isfinite(item) for item in items) else ""
            expected = f"expected {finite}{self.type_name}{limits} (default {self.default!r})"
            raise UserError(f"{at}{name} = {brief(value)}{kind}, {expected}")
        for item in items if choices and self.choices else ():
            if item != self.default and isinstance(item, str):
                check_availability(item, self.available, name)

    def _takes(self, value: Any, items: list | tuple, listed: bool) -> bool:
        if self.default is None or listed and not self.meaning:  # nobody declared what they take
            return True
        if not (listed or not self.is_sequence or _is(value, self.also)):
            return False
        if listed and (self.length not in (None, len(items)) or self.nonempty and not items):
            return False
        fits = all(_is(item, self.scalar, self.also) and self._in_range(item) for item in items)
        return fits and (self.test is None or self.test(value))

    def _in_range(self, item: Any) -> bool:
        if not self.meaning or not _is(item, float):
            return True
        ends = ((compare, getattr(self, name)) for name, (compare, _) in BOUNDS.items())
        finite = math.isfinite(item) if isinstance(item, float) else abs(item) <= sys.maxsize
        return finite and all(end is None or compare(item, end) for compare, end in ends)


class Typed(str):
    """The text of a plain yaml scalar that is no text to yaml. value: the number, bool or None that it is."""

    value: Any


Keys = Mapping[str, Key]


def build_node(keys: Keys) -> CN:
    """The tree of the defaults of {"A.B": Key, ...}."""
    root = CN()
    for name, key in keys.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, CN())
        node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
    return root


def add_missing(node: CN, defaults: CN) -> None:
    """Give `node`, frozen or not, what it lacks of `defaults`, in place."""
    frozen = node.is_frozen()
    for key, value in defaults.items():
        if isinstance(value, CN) and isinstance(node.get(key), CN):
            add_missing(node[key], value)
        elif key not in node:
            node[key] = value.clone() if isinstance(value, CN) else value
            if isinstance(value, CN) and frozen:
                node[key].freeze()


def check_values(cfg: CN, keys: Keys, *, choices: bool = True) -> None:
    """UserError for the first value in cfg that its key does not take; what cfg lacks is passed over."""
    for name, value in leaves(cfg):
        if name in keys:
            keys[name].check(name, value, choices=choices)


def leaves(tree: Mapping, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """("A.B.C", value) for every leaf of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(tree: Any) -> Any:
    """A tree of a yaml file with each Typed as its value."""
    if isinstance(tree, dict):
        return {plain(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(plain, tree))
    return tree.value if isinstance(tree, Typed) else tree


def literal(text: Any) -> Any:
    """The Python value that a text is the literal of, or the text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: {[]: 1}
        return text


def _items(text: str) -> Any:
    """A typed list of texts, quoted or not: "[a, '010', 1e5]" -> ["a", "010", "1e5"]; the text where it is none."""
    value = literal(text)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return value
    inside = text.strip()
    if inside[:1] + inside[-1:] not in ("[]", "()"):
        return text
    lexer = shlex.shlex(inside[1:-1], posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = ",", True, ""
    try:
        return [part for part in map(str.strip, lexer) if part]
    except ValueError:  # a quote is open
        return text


def _is(value: Any, *kinds: type | None) -> bool:
    """isinstance, where an int is a float too and a bool is no number."""
    types = {kind for kind in kinds if kind} | ({int} if float in kinds else set())
    return isinstance(value, tuple(types)) and (bool in types or not isinstance(value, bool))


def is_odd(number: int) -> bool:
    """odd"""
    return number % 2 == 1


def is_ascending(numbers: Iterable[float]) -> bool:
    """ascending"""
    numbers = list(numbers)
    return numbers == sorted(numbers)
