"""Feature banks on disk, listed and removed:  python -m dassl.clip.banks [DIR] [--remove KEY ... | all]

A bank that is missing is built again by the run that wants it. DIR: FEATURES.DIR of the runs, by default
$OUTPUT/features, else output/features below the current folder.
"""

import argparse
import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from dassl.utils import RunLock, UserError, errors_in_one_line, expand_user, get_logger, one_line, read_json

ROW = "{:32}  {:>9}  {:>6}  {:>9}  {:16}  {}"


def default_folder() -> str:
    """Where banks lie unless FEATURES.DIR says otherwise."""
    return os.path.join(os.environ.get("OUTPUT") or "output", "features")


def find_banks(folder: str | Path) -> dict[str, Path]:
    """Banks of a folder by key. Links are passed over."""
    inside = Path(folder).iterdir() if os.path.isdir(folder) else ()
    return {
        path.name: path
        for path in sorted(inside)
        if re.fullmatch("[0-9a-f]{32}", path.name) and not path.is_symlink() and (path / "bank.json").is_file()
    }


def describe(path: Path) -> str:
    """A row: key, images, rounds of views + unfinished ones, size, when it was written, backbone, where images lie."""
    facts, rounds, parts = {}, list(path.glob("round-*.safetensors")), list(path.glob("round-*.part"))
    with contextlib.suppress(ValueError, TypeError):  # a damaged one can be removed, too
        facts = dict(read_json(path / "bank.json"))
    size = sum(os.path.getsize(file) for file in [*rounds, *parts] if file.exists()) / 2**20  # one may be finished now
    count = f"{len(rounds)}+{len(parts)}" if parts else len(rounds)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(map(os.path.getmtime, [path, *rounds]))))
    of = f"{facts.get('backbone', '?')}, {facts.get('folder', '?')}"
    images = one_line(str(facts.get("images", "?")))
    return ROW.format(path.name, images, count, f"{size:,.1f} MB", when, one_line(of))


def main(argv: list[str] | None = None) -> None:
    """Run one command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dassl.clip.banks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default=default_folder(), metavar="DIR")
    parser.add_argument("--remove", nargs="+", default=[], metavar="KEY", help="banks to remove, by key, or all")
    args = parser.parse_args(argv)
    folder, log = expand_user(args.folder), get_logger()
    banks = find_banks(folder)
    chosen = list(banks) if args.remove == ["all"] else args.remove
    if unknown := [key for key in chosen if key not in banks]:
        raise UserError(f"{folder} has no bank {', '.join(unknown)}; there: {', '.join(banks) or 'none'}")
    if not chosen:
        log.info(ROW.format(f"banks in {folder}: {len(banks)}", "images", "rounds", "size", "written", "of"))
    for key in chosen or banks:
        log.info(("removed  " if chosen else "") + describe(banks[key]))
        if chosen:
            with RunLock(banks[key]):
                shutil.rmtree(banks[key])


if __name__ == "__main__":
    with errors_in_one_line():
        main()
