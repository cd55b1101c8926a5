"""The direction of imports between packages, read from the sources."""

import ast
import importlib.util

from tests.conftest import ROOT

ENGINE = ROOT / "Dassl.ProGrad.pytorch" / "dassl"
LOW = {"config", "optim", "metrics", "evaluation", "modeling", "data", "clip", "merging", "report"}
# package -> what it may import of ours, beside itself and dassl.utils
ALLOWED = {f"dassl.{name}": {"dassl.config"} for name in LOW} | {
    "dassl.utils": set(),
    "dassl.config": set(),
    "dassl.clip": {"dassl.config", "dassl.data"},
    "dassl.engine": {f"dassl.{name}" for name in LOW},
    "datasets": {"dassl.data"},
    "mergetune": {"dassl.engine", "dassl.clip", *(f"dassl.{name}" for name in LOW)},
    "condu": {"dassl.engine", "dassl.clip", *(f"dassl.{name}" for name in LOW)},
}
PURE = [
    "mergetune/lmc.py",
    "Dassl.ProGrad.pytorch/dassl/merging/records.py",
    "Dassl.ProGrad.pytorch/dassl/merging/methods.py",
    "Dassl.ProGrad.pytorch/dassl/merging/lora.py",
    "condu/delta.py",
    "condu/fusion.py",
    "condu/bitpack.py",
    "condu/voting.py",
    "condu/metrics.py",
]
HEAVY = {"open_clip", "matplotlib", "sklearn", "scipy", "tensorboard", "clip"}


def package_of(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "dassl" else parts[0]


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def sources():
    for base, name in ((ENGINE, "dassl"), *((ROOT / p, p) for p in ("datasets", "mergetune", "condu"))):
        for path in sorted(base.rglob("*.py")):
            if "scripts" not in path.relative_to(base).parts:
                yield path, f"{name}." + ".".join(path.relative_to(base).with_suffix("").parts)


def test_packages_import_downwards_only():
    ours = {package.split(".")[0] for package in ALLOWED}
    bad = []
    for path, module in sources():
        package = package_of(module)
        if package not in ALLOWED:
            continue  # dassl/__init__.py
        for name in imports(path):
            target = package_of(name)
            fine = target in (package, "dassl.utils", "dassl") or target in ALLOWED[package]
            if name.split(".")[0] in ours and not fine:
                bad.append(f"{module} imports {name}")
    assert not bad


def test_the_maths_imports_torch_alone():
    names = (name.removeprefix("Dassl.ProGrad.pytorch/").removesuffix(".py") for name in PURE)
    pure = {name.replace("/", ".") for name in names} | {"__future__"}
    for name in PURE:
        if (ROOT / name).exists():
            found = {m.split(".")[0] for m in imports(ROOT / name) if m not in pure}
            assert found <= {"torch", "collections", "concurrent", "typing", "dataclasses", "math", "re"}, name


def test_heavy_packages_are_imported_where_used():
    for path, module in sources():
        heavy = {m.split(".")[0] for m in imports(path, top_level_only=True)} & HEAVY
        assert not heavy, f"{module} imports {heavy} at its top"


def test_every_import_of_ours_names_something_that_is_there():
    """Late ones too, which no other module's import finds out about."""
    ours = {package.split(".")[0] for package in ALLOWED} | {"scripts", "train"}
    files = [ROOT / "train.py", *(ROOT / "scripts").rglob("*.py"), *(path for path, _ in sources())]
    bad = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ours:
                module = importlib.import_module(node.module)
                bad += [
                    f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name) and not importlib.util.find_spec(f"{node.module}.{alias.name}")
                ]
    assert not bad
