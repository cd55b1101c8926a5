"""docs/config.md, every config key with its default, type, range and meaning:  python scripts/config_docs.py --write"""

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
"""


def row(name: str, key) -> str:
    """A line of a table."""
    names = [] if "as INPUT." in key.meaning or "REGISTRY" in str(key.choices) else key.available
    limits = ", ".join(filter(None, (key.limits, " / ".join(filter(None, names)))))
    cells = (f"`{name}`", f"`{key.default!r}`", key.type_name, limits, key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sections() -> dict[str, dict]:
    """Heading -> {key: Key}: the engine's by their first part, then each node of cfg.TRAINER."""
    import train
    from dassl.config import KEYS
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.build import config_nodes, trainer_keys

    train.every_key()
    found, users = {}, {}
    for name, key in KEYS.items():
        parts = name.split(".")
        found.setdefault(".".join(parts[:2]) if len(parts) > 2 and parts[0] == "TRAINER" else parts[0], {})[name] = key
    classes = [TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()]
    for cls in classes:
        if cls.__module__.startswith(("condu.", "mergetune.trainers.", "dassl.")):
            for name, key in trainer_keys(cls).items():
                found.setdefault(".".join(name.split(".")[:2]), {})[name] = key
            for node, _ in config_nodes(cls):
                users.setdefault(f"TRAINER.{node}", []).append(cls.__name__)
    single = {name: keys.pop(name) for name, keys in list(found.items()) if name in keys}
    titles = {name: f"{name} ({', '.join(users[name])})" if name in users else name for name in found}
    return {"Top level": single} | {titles[name]: keys for name, keys in found.items() if keys}


def render() -> str:
    """The page."""
    text = HEAD
    for title, keys in sections().items():
        lines = ["| key | default | type | range | meaning |", "| --- | --- | --- | --- | --- |"]
        text += "\n".join(["", f"## {title}", "", *lines, *(row(name, key) for name, key in keys.items()), ""])
    return text


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(render(), encoding="utf-8")
    else:
        print(render(), end="")
