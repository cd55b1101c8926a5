"""The command line of `python -m datasets`."""

import argparse
import os
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import ArgumentParser, UserError, closest, get_logger, write_json

from .check import ABSENT, OK, check, plain, table
from .import_subset import import_subset
from .known import KNOWN, PROTOCOLS, lines_of
from .make_split import make_split

CLONE = Path(__file__).resolve().parents[2]
ALIASES = {"dtd": "DescribableTextures"}
WELL, PROBLEMS, NOTHING = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m datasets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    root = ArgumentParser(add_help=False)
    default = os.environ.get("DATA") or str(CLONE / "data")
    root.add_argument(
        "--root", type="path", default=default, help="folder of all data sets (default: $DATA, else data/ in the clone)"
    )

    one = commands.add_parser("check", parents=[root], help="one line for each set: is it what the tables are made of?")
    one.add_argument("names", nargs="*", metavar="NAME", help="data sets; default: all that are public")
    one.add_argument("--protocol", choices=PROTOCOLS, default="all", help="which sets, where none is named")
    one.add_argument("--decode", choices=("none", "sample", "all"), default="sample", help="which images are opened")
    one.add_argument("--jobs", type=int, default=4, help="images opened at once")
    one.add_argument("--json", type="path", default="", metavar="FILE", help="the rows as JSON too")

    one = commands.add_parser("links", help="sources, checksums and dead links")
    one.add_argument("names", nargs="*", metavar="NAME")

    one = commands.add_parser(
        "make-split", parents=[root], help="a split of one's own where the published one is missing"
    )
    one.add_argument("name", metavar="NAME")
    one.add_argument("--seed", type=int, default=1)

    one = commands.add_parser("import-subset", parents=[root], help="another program's pickled draw as a subset file")
    one.add_argument("file", type="path", metavar="FILE.pkl")
    one.add_argument("name", metavar="NAME")
    one.add_argument("--out", type="path", default="subset.json", help="where it goes (default: subset.json)")
    one.add_argument("--shots", type=int, default=0, help="where the file's name does not say it")
    one.add_argument("--seed", type=int, default=-1, help="where the file's name does not say it")
    return parser


def registered(word: str) -> str:
    """The registered name of a data set, given that or its yaml's name (caltech101, mtil/oxford_pet)."""
    names = {plain(name): name for name in DATASET_REGISTRY.registered_names()} | ALIASES
    if plain(word) not in names:
        near = ", ".join(closest(word, [name for name in names.values() if name in KNOWN]))
        raise UserError(f"no data set {word}; nearest: {near}")
    return names[plain(word)]


def public(words: list[str], protocol: str = "all") -> list[str]:
    """Names that the tables of known sets have; all of a protocol, if none is given."""
    names = [registered(word) for word in words] or list(PROTOCOLS[protocol])
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise UserError(f"{unknown[0]} is no public data set; those are {', '.join(KNOWN)}")
    return names


def run_check(args: argparse.Namespace) -> int:
    root = os.path.abspath(args.root)
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}, expected 1 or more")
    rows = [check(name, root, args.decode, args.jobs) for name in public(args.names, args.protocol)]
    say(table(rows))
    if args.json:
        write_json(rows, args.json)
    if all(row["status"] == ABSENT for row in rows):
        say([f"nothing found below {root} (--root); where to get it: python -m datasets links NAME"])
        return NOTHING
    wrong = [row for row in rows if row["status"] != OK and (args.names or row["status"] != ABSENT)]
    return PROBLEMS if wrong else WELL


def say(lines: list[str]) -> None:
    get_logger().info("\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 all well, 1 problems, 2 nothing found. Sets that nobody named may be absent."""
    args = build_parser().parse_args(argv)
    if args.command == "check":
        return run_check(args)
    if args.command == "links":
        say([line for name in public(args.names) for line in lines_of(name)])
    elif args.command == "make-split":
        path = make_split(registered(args.name), args.root, args.seed)
        say([f"{path} is written; results with it do not compare with published ones"])
    else:
        drawn = import_subset(args.file, registered(args.name), args.root, args.out, args.shots, args.seed)
        say([f"{args.out} is written: {len(drawn['train'])} training images"])
    return WELL
