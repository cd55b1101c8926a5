"""Names to classes, and messages that help when a name is misspelt."""

import difflib
import functools
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from .errors import UnknownName, UserError
from .logger import get_logger

PLUGINS = "configs/plugins.yaml"  # beside the engine's folder, or in one of sys.path: {kind: [package or module, ...]}
_broken: dict[str, str] = {}  # file of a module that could not be imported -> why


def closest(name: object, available: Iterable, n: int = 3) -> list:
    """Up to `n` of `available` that look most like `name`, best first; letter case does not count."""
    by_lower: dict[str, list] = {}
    for candidate in available:
        by_lower.setdefault(str(candidate).lower(), []).append(candidate)
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=n, cutoff=0.0)
    return [candidate for lower in nearest for candidate in by_lower[lower]][:n]


def get_most_similar_str_to_a_from_b(a: object, b: Iterable) -> Any:
    """The one of the strings `b` that looks most like `a`; None if `b` is empty."""
    return next(iter(closest(a, b, n=1)), None)


def check_availability(requested: object, available: Iterable, what: str = "The requested one") -> None:
    """Raise UserError, with the nearest name, unless `requested` is one of `available`; `what` is it a name of."""
    if requested in available:
        return
    for file, reason in _broken.items():
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        if requested and re.search(rf"^\s*class {re.escape(str(requested))}\b", text, re.MULTILINE):
            raise UserError(f"{what} {requested} is in {file}, which cannot be imported: {reason}")
    names = ", ".join(map(str, available))
    hint = get_most_similar_str_to_a_from_b(requested, available) if requested else None
    suffix = f" (do you mean [{hint}]?)" if hint is not None else ""
    raise UserError(f"{what} is expected to belong to [{names}], but got [{requested}]{suffix}")


def import_modules(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package's folders, so that its classes are registered; folders: its `__path__`.

    One that fails is left out with a warning, and `check_availability` tells the reason to whoever asks for a class
    of it.
    """
    for module in pkgutil.iter_modules(folders):
        if module.ispkg or module.name == "__main__":
            continue
        try:
            import_module(f"{package}.{module.name}")
        except (Exception, SystemExit) as error:
            file = f"{vars(module.module_finder)['path']}/{module.name}.py"
            if file not in _broken:
                _broken[file] = f"{type(error).__name__}: {error}".splitlines()[0]
                warnings.warn(f"{file} is left out: {_broken[file]}", stacklevel=3)


def import_plugins(kind: str) -> None:
    """Import what PLUGINS names of a kind ("trainers", "datasets"): modules, and packages with every module in them.

    Where there is no such file, as where the engine is installed alone, nothing. UserError for one that names what
    cannot be imported.
    """
    beside = str(Path(__file__).resolve().parents[3])
    file = next((file for folder in (beside, *sys.path) if (file := Path(folder, PLUGINS).absolute()).is_file()), None)
    if file is None:
        return
    try:
        names = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get(kind) or []
        if not isinstance(names, list):
            raise TypeError
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError):
        raise UserError(f"{file}: expected lists of packages, such as {kind}: [package.{kind}]") from None
    if str(file.parents[1]) not in sys.path:
        sys.path.insert(0, str(file.parents[1]))
    for name in names:
        try:
            module = import_module(name)
        except (Exception, SystemExit) as error:
            what = f"{file} names {name}, which cannot be imported"
            raise UserError(f"{what}: {type(error).__name__}: {error}") from error
        import_modules(name, getattr(module, "__path__", ()))


class Registry:
    """Maps `__name__` to class or function.

    >>> TRAINERS = Registry("TRAINER")
    >>> @TRAINERS.register()
    ... class Mine: ...
    >>> TRAINERS.get("Mine") is Mine
    True

    built_in: modules that register the first members, imported when the registry is first used.
    plugins: kind of the packages (see import_plugins) that are imported once a name is asked for that nobody has
    registered, or all names are.
    """

    def __init__(self, name: str, built_in: Iterable[str] = (), plugins: str = "") -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}
        self._built_in = built_in
        self._plugins = plugins

    def _load(self):
        modules, self._built_in = self._built_in, ()
        for module in modules:
            import_module(module)

    def _load_plugins(self):
        self._load()
        kind, self._plugins = self._plugins, ""  # they may ask for names themselves
        if kind:
            try:
                import_plugins(kind)
            except UserError:
                self._plugins = kind
                raise

    def __contains__(self, name):
        self._load()
        if name not in self._obj_map:
            self._load_plugins()
        return name in self._obj_map

    def __iter__(self):
        return iter(self.registered_names())

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register `obj`, and return it; give a decorator if there is none. `force` replaces an earlier entry.
        KeyError: the name is taken."""
        if obj is None:
            return functools.partial(self.register, force=force)
        self._load()
        name = obj.__name__
        if name in self._obj_map and not force:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj
        return obj

    def get(self, name: str) -> Any:
        """The object of that name. Raises UnknownName (a KeyError) with the nearest names."""
        if name not in self:
            message = f'Object name "{name}" does not exist in "{self._name}" registry'
            near = ", ".join(closest(name, self._obj_map))
            raise UnknownName(f"{message} (nearest: {near})" if near else f"{message}, which is empty")
        return self._obj_map[name]

    def build(self, name: str, what: str, verbose: bool, *args: Any, **kwargs: Any) -> Any:
        """Call the member of that name. Raises UserError, with the nearest name, for one that is none of `what`."""
        check_availability(name, self, what)
        if verbose:
            get_logger().debug(f"{what.removeprefix('A ').capitalize()}: {name}")
        return self.get(name)(*args, **kwargs)

    def registered_names(self) -> list[str]:
        """All names, in order of registration."""
        self._load_plugins()
        return list(self._obj_map)
