"""docs/config.md, every config key with its default, type, range and meaning:  python scripts/config_docs.py --write"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "config.md"
sys.path[:0] = [str(ROOT), str(ROOT / "Dassl.ProGrad.pytorch")]
HEAD = """\
# Config keys

Made by `python scripts/config_docs.py --write` from the tables beside the code: the engine's in
`Dassl.ProGrad.pytorch/dassl/config/defaults.py`, a trainer's in its `KEYS`. A value of another type or out of its
range is refused before a run makes anything, whether a yaml, a flag, `KEY VALUE`, `KEY=VALUE` or Python sets it. A
text is taken as it is typed (`010`, `1e5`, `no`); a path may begin with `~`. A range counts for each item.

A run that is finished or interrupted is held against the one that is asked for in all keys of its trainer that are not
`incidental` (where, how fast, how much is printed); an evaluation not in those of role `training`. A path is compared
by what lies there.
"""


def row(name: str, key) -> str:
    """A line of a table."""
    choices = [] if "as INPUT." in key.meaning or "REGISTRY" in str(key.choices) else key.available
    limits = ", ".join(filter(None, (key.limits, " / ".join(choices))))
    cells = (f"`{name}`", f"`{key.default!r}`", key.type_name, limits, key.role, key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sections() -> dict[str, dict]:
    """Heading -> {key: Key}: the engine's by their first part, and each node of cfg.TRAINER."""
    from dassl.config import KEYS
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.build import trainer_keys

    keys = dict(KEYS)
    for cls in map(TRAINER_REGISTRY.get, sorted(TRAINER_REGISTRY.registered_names())):
        if cls.__module__.startswith(("condu.", "mergetune.trainers.", "dassl.")):
            keys |= trainer_keys(cls)
    headings: dict[str, dict] = {}
    for name, key in keys.items():
        parts = name.split(".")
        heading = ".".join(parts[: 1 + (parts[0] == "TRAINER")][: len(parts) - 1]) or "Top level"
        headings.setdefault(heading, {})[name] = key
    return headings


def render() -> str:
    """The page."""
    lines = [HEAD.rstrip()]
    for title, keys in sections().items():
        lines += ["", f"## {title}", "", "| key | default | type | range | role | meaning |", "| --- " * 6 + "|"]
        lines += [row(name, key) for name, key in keys.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    if parser.parse_args().write:
        PAGE.write_text(render(), encoding="utf-8")
    else:
        print(render(), end="")
