"""Which lines of the readers were executed, by sys.settrace on a sample of the inputs; their count from the code."""

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.oracle import ROOT


class Lines:
    """Executed lines of some modules of the repository: `seen` {path: {line}}."""

    def __init__(self, modules: tuple[str, ...]):
        self.seen: dict[str, set[int]] = {module: set() for module in modules}
        self._by_file = {str(ROOT / module): self.seen[module] for module in modules}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _call(self, frame, event, arg):
        lines = self._by_file.get(frame.f_code.co_filename)
        if lines is None:
            return None
        frame.f_trace_opcodes = False

        def trace(frame, event, arg):
            if event == "line":
                lines.add(frame.f_lineno)
            return trace

        return trace

    @property
    def count(self) -> int:
        return sum(map(len, self.seen.values()))


def function_lines(module: str) -> dict[str, set[int]]:
    """{function: its lines that can be executed} of a module's file; what runs on import is left out."""
    path = ROOT / module
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    found: dict[str, set[int]] = {}

    def walk(code, prefix):
        for inner in code.co_consts:
            if not isinstance(inner, types.CodeType):
                continue
            body = inner.co_name.startswith("<")
            name = prefix if body else f"{prefix}.{inner.co_name}".lstrip(".")
            if prefix or _is_function(inner):
                lines = {line for _, _, line in inner.co_lines() if line} - {inner.co_firstlineno}
                if _is_function(inner):
                    found.setdefault(name or inner.co_name, set()).update(lines)
            walk(inner, name)

    walk(code, "")
    return found


def _is_function(code: types.CodeType) -> bool:
    return bool(code.co_flags & 0x1)  # CO_OPTIMIZED: a class body is none


def ranges(lines: set[int]) -> str:
    """3, 5-7, 9"""
    parts: list[list[int]] = []
    for line in sorted(lines):
        if parts and line == parts[-1][-1] + 1:
            parts[-1][1:] = [line]
        else:
            parts.append([line])
    return ", ".join("-".join(map(str, part)) for part in parts)


def relative(module: types.ModuleType) -> str:
    """The path of a module's file in the repository."""
    return str(Path(module.__file__).resolve().relative_to(ROOT))
