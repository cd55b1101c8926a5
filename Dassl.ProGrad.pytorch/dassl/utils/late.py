"""Late imports (PEP 562): what a name needs, torch above all, is imported when the name is first used."""

import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module


def late_imports(package: str, **modules: str) -> tuple[Callable, Callable, list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) of a package. modules: submodule -> the names it brings, with blanks.

    A submodule is an attribute of the package too, whether or not it was imported before.
    """
    origin = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str):
        path = f"{package}.{origin.get(name, name)}"
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        return getattr(module, name) if name in origin else module

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origin, *modules})

    return __getattr__, __dir__, sorted(origin)


def forwarding(module: str, *names: str) -> Callable:
    """The `__getattr__` of a module that gives names of others too: "json module:name", with blanks between them."""
    places = {place.rpartition(":")[2]: place for line in names for place in line.split()}

    def __getattr__(name: str):
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return pkgutil.resolve_name(places[name])

    return __getattr__
