"""The package's types: they agree with each other and with the code, and no public function is without."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

ENGINE = ROOT / "Dassl.ProGrad.pytorch"


def test_mypy_finds_nothing_in_the_package_and_in_trainers_of_others(request, tmp_path):
    kept = getattr(request.config, "cache", None)  # with it a second run takes a fifth of the time
    cache = kept.mkdir("mypy") if kept else tmp_path
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache, "dassl", ROOT / "tests/fixtures/typed_trainers.py"]
    run = subprocess.run(command, cwd=ENGINE, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public functions of a module, and the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With) or (
            isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ):
            yield from functions(node.body + getattr(node, "orelse", []))


def lacks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """What of a function has no type; *args and **kwargs, which are passed on, need none."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    names = [each.arg for each in arguments if each.annotation is None and each.arg not in ("self", "cls")]
    return names if function.returns else [*names, "return"]


def test_public_functions_have_types_on_every_parameter_and_on_what_they_return():
    def without(path: Path) -> list[str]:
        public = functions(ast.parse(path.read_text()).body)
        return [f"{path}:{each.lineno} {each.name}: {', '.join(lacks(each))}" for each in public if lacks(each)]

    assert [line for path in sorted((ENGINE / "dassl").rglob("*.py")) for line in without(path)] == []


def test_a_public_method_without_a_type_is_found():
    source = "class Head:\n    def forward(self, x: int, scale=1.0): ...\n    def _merge(self, x): ...\n"
    assert [lacks(each) for each in functions(ast.parse(source).body)] == [["scale", "return"]]
