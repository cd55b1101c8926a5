"""Names to classes, and messages that help when a name is misspelt."""

import difflib
from importlib import import_module

from .errors import UnknownName, UserError


def closest(name, available, n=3):
    """Up to `n` of `available` that look most like `name`, best first; letter case does not count."""
    by_lower = {}
    for candidate in available:
        by_lower.setdefault(str(candidate).lower(), []).append(candidate)
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=n, cutoff=0.0)
    return [candidate for lower in nearest for candidate in by_lower[lower]][:n]


def get_most_similar_str_to_a_from_b(a, b):
    """The one of the strings `b` that looks most like `a`; None if `b` is empty."""
    return next(iter(closest(a, b, n=1)), None)


def check_availability(requested, available, what="The requested one"):
    """Raise UserError, with the nearest name, unless `requested` is one of `available`; `what` is it a name of."""
    if requested in available:
        return
    names = ", ".join(map(str, available))
    hint = get_most_similar_str_to_a_from_b(requested, available) if requested else None
    suffix = f" (do you mean [{hint}]?)" if hint is not None else ""
    raise UserError(f"{what} is expected to belong to [{names}], but got [{requested}]{suffix}")


class Registry:
    """Maps `__name__` to class or function.

    >>> TRAINERS = Registry("TRAINER")
    >>> @TRAINERS.register()
    ... class Mine: ...
    >>> TRAINERS.get("Mine") is Mine
    True

    built_in: modules that register the first members, imported when the registry is first used.
    """

    def __init__(self, name, built_in=()):
        self._name = name
        self._obj_map = {}
        self._built_in = built_in

    def _load(self):
        modules, self._built_in = self._built_in, ()
        for module in modules:
            import_module(module)

    def __contains__(self, name):
        self._load()
        return name in self._obj_map

    def _add(self, obj, force):
        self._load()
        name = obj.__name__
        if name in self._obj_map and not force:
            raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
        self._obj_map[name] = obj

    def register(self, obj=None, force=False):
        """Register `obj`, or give a decorator if there is none. `force` replaces an earlier entry.

        Raises:
            KeyError: the name is taken.
        """
        if obj is not None:
            self._add(obj, force)
            return None

        def decorator(target):
            self._add(target, force)
            return target

        return decorator

    def get(self, name):
        """The object of that name. Raises UnknownName (a KeyError) with the nearest names."""
        if name not in self:
            message = f'Object name "{name}" does not exist in "{self._name}" registry'
            near = ", ".join(closest(name, self._obj_map))
            raise UnknownName(f"{message} (nearest: {near})" if near else f"{message}, which is empty")
        return self._obj_map[name]

    def registered_names(self):
        """All names, in order of registration."""
        self._load()
        return list(self._obj_map)
