"""A config key: its default, meaning, type and range. One form for the engine's keys (defaults.py) and a trainer's
(its class attribute KEYS); one reader of values as they are typed, one check of values."""

import ast
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode as CN

from dassl.utils import UserError, brief, check_availability, expand_user


@dataclass(frozen=True)
class Key:
    """A key with its default, which says its type, and its meaning.

    ge, gt, le, lt: bounds of a number, or of each item of a sequence; numbers are finite.
    choices: what a text, or each text of a sequence, may be; "module:attribute" names a list, dict or Registry that
        is looked up when a value is checked, so that names which others add count.
    length: of a sequence; nonempty: it has an item. item: type of its items, where its default has none.
    also: another type that is taken. path: a text that names a file or folder; `~` is expanded.
    test: what the bounds cannot say; its docstring says it.
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
        if None not in (self.ge, self.le):
            words = [f"{self.ge:g}" if self.ge == self.le else f"{self.ge:g} to {self.le:g}"]
        else:
            ends = {
                "{:.10g} or more": self.ge,
                "above {:.10g}": self.gt,
                "at most {:.10g}": self.le,
                "below {:.10g}": self.lt,
            }
            words = [text.format(end) for text, end in ends.items() if end is not None]
        if float in (self.scalar, self.also) and self.le is None and self.lt is None:
            words.append("finite")
        if self.length or self.nonempty:
            words.append(f"{self.length} items" if self.length else "not empty")
        return ", ".join([*words, *([self.test.__doc__] if self.test else [])])

    def parse(self, value: Any) -> Any:
        """A value as typed (a text, or from yaml) as this key's type, or as it is where it is none of it."""
        if not self.is_sequence:
            return self._scalar(value, type(self.default))
        if isinstance(value, str):
            value = _items(value) if self.scalar is str else literal(value)
        if isinstance(value, list | tuple):
            return type(self.default)(self._scalar(item, self.scalar) for item in value)
        return value.value if isinstance(value, Typed) else value

    def _scalar(self, value: Any, kind: type) -> Any:
        text = value.text if isinstance(value, Typed) else value
        if bool in (kind, self.also) and isinstance(text, str) and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if str in (kind, self.also):
            text = str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text
            return expand_user(text) if self.path and isinstance(text, str) else text
        read = value.value if isinstance(value, Typed) and kind not in (int, float) else literal(text)
        return _as_float(read) if kind is float else read

    def check(self, name: str, value: Any, where: str = "", *, choices: bool = True) -> None:
        """UserError, which begins with `where`, unless the key takes `value`. choices: hold them too."""
        items = value if self.is_sequence and isinstance(value, list | tuple) else [value]
        problem = self._problem(value, items)
        if problem:
            at = f"{where}: " if where else ""
            raise UserError(f"{at}{name} = {brief(value)}{problem} (default {self.default!r})")
        if choices and self.choices:
            for item in items:
                if item != self.default and isinstance(item, str):
                    check_availability(item, self.available, name)

    def _problem(self, value: Any, items: list | tuple) -> str:
        """What is wrong with a value, or with one of its items; "" if nothing is."""
        kinds = [self.scalar, *([self.also] if self.also else [])]
        if self.default is None or self.is_sequence and isinstance(value, list | tuple) and not self.meaning:
            return ""  # a key that nobody declared, which does not say what it takes
        limits = f"expected {self.type_name}" + (f", {self.limits}" if self.limits else "")
        single = not self.is_sequence or self.also and _is(value, self.also)
        if not single and not isinstance(value, list | tuple) or single and not any(_is(value, k) for k in kinds):
            return f" is a {type(value).__name__}, {limits}"
        fits = all(any(_is(item, kind) for kind in kinds) and self._in_range(item) for item in items)
        if not single:
            fits = fits and self.length in (None, len(items)) and (len(items) > 0 or not self.nonempty)
        return "" if fits and (self.test is None or self.test(value)) else f", {limits}"

    def _in_range(self, item: Any) -> bool:
        if not self.meaning or not isinstance(item, int | float) or isinstance(item, bool):
            return True
        return (
            (math.isfinite(item) if isinstance(item, float) else abs(item) <= sys.maxsize)
            and (self.ge is None or item >= self.ge)
            and (self.gt is None or item > self.gt)
            and (self.le is None or item <= self.le)
            and (self.lt is None or item < self.lt)
        )


@dataclass(frozen=True)
class Typed:
    """A plain scalar of a yaml file that yaml reads as no text: its value, and the text that stands there."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


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
    for name, key in keys.items():
        node, (*parents, leaf) = cfg, name.split(".")
        for parent in parents:
            node = node.get(parent) if isinstance(node, CN) else None
        if isinstance(node, CN) and leaf in node:
            key.check(name, node[leaf], choices=choices)


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
    parts = [part for part in map(str.strip, inside[1:-1].split(",")) if part]
    items = [literal(part) if part[0] in "'\"" else part for part in parts]
    return text if any(item[0] in "'\"" for item in items if isinstance(item, str) and item) else items


def _as_float(value: Any) -> Any:
    try:
        return float(value) if _is(value, int) else value
    except OverflowError:
        return value


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def is_odd(number: int) -> bool:
    """odd"""
    return number % 2 == 1


def is_ascending(numbers: Iterable[float]) -> bool:
    """ascending"""
    numbers = list(numbers)
    return numbers == sorted(numbers)
